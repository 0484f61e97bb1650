#include "bindings.h"

namespace bnb_core {

void bind_statistics(py::module_& m, const Kernels& kernels) {
    m.def(
        "percentile_clipping",
        [&kernels](Address grad, std::string_view dtype, std::int64_t n, Address history, int slot, int percentile,
                   int threads) {
            Clipping result;
            {
                const py::gil_scoped_release release;
                result = kernels.percentile_clipping(pointer<const void>(grad), dtype_of(dtype), n,
                                                     pointer<float>(history), slot, percentile, threads);
            }
            return py::make_tuple(result.norm, result.clip, result.scale);
        },
        py::arg("grad"), py::arg("dtype"), py::arg("n"), py::arg("history"), py::arg("slot"), py::arg("percentile"),
        py::arg("threads"));
    m.def(
        "sort_values",
        [&kernels](Address A, std::string_view dtype, std::int64_t n, Address sorted, Address spare) {
            kernels.sort_values(pointer<const void>(A), dtype_of(dtype), n, pointer<std::uint32_t>(sorted),
                                pointer<std::uint32_t>(spare));
        },
        py::arg("A"), py::arg("dtype"), py::arg("n"), py::arg("sorted"), py::arg("spare"), ReleaseGil());
}

}  // namespace bnb_core
