#include "bindings.h"

PYBIND11_MODULE(BNB_MODULE, m, py::mod_gil_not_used()) {
    m.doc() = "Kernels of bnb_core for NVIDIA GPUs.";
    bnb_core::bind_blockwise(m);
    bnb_core::bind_fourbit(m);
    bnb_core::bind_int8(m);
    bnb_core::bind_optimizer(m);
    bnb_core::bind_paging(m);
    bnb_core::bind_statistics(m);
}
