#include "bindings.h"

namespace bnb_core {

namespace {

#ifndef BNB_FIBERS
// Versions as CUDA writes them, 13000 for 13.0.
void bind_versions(py::module_& m) {
    m.attr("cuda_version") = CUDART_VERSION;
    define(m, "driver_version", [] {
        int version = 0;
        check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
        return static_cast<std::int64_t>(version);
    });
}
#else
void bind_versions(py::module_&) {}
#endif

}  // namespace

}  // namespace bnb_core

PYBIND11_MODULE(BNB_MODULE, m, py::mod_gil_not_used()) {
    m.doc() = "Kernels of bnb_core for NVIDIA GPUs.";
    bnb_core::bind_blockwise(m);
    bnb_core::bind_fourbit(m);
    bnb_core::bind_int8(m);
    bnb_core::bind_optimizer(m);
    bnb_core::bind_paging(m);
    bnb_core::bind_statistics(m);
    bnb_core::bind_versions(m);
}
