#include "bindings.h"

namespace bnb_core {

void bind_blockwise(py::module_& m, const Kernels& kernels) {
    m.def(
        "dequantize_blockwise",
        [&kernels](Address A, Address absmax, Address code, std::int64_t code_size, std::int64_t blocksize,
                   std::int64_t n, std::string_view dtype, Address out, int threads) {
            kernels.dequantize_blockwise(pointer<const std::uint8_t>(A), pointer<const float>(absmax),
                                         pointer<const float>(code), code_size, blocksize, n, dtype_of(dtype),
                                         pointer<void>(out), threads);
        },
        py::arg("A"), py::arg("absmax"), py::arg("code"), py::arg("code_size"), py::arg("blocksize"), py::arg("n"),
        py::arg("dtype"), py::arg("out"), py::arg("threads"), ReleaseGil());
}

}  // namespace bnb_core
