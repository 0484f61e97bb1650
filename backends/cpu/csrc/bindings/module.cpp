// The Python module: a submodule for each level that this CPU runs.
#include <pybind11/stl.h>

#include "../runtime/levels.h"
#include "../runtime/parallel.h"
#include "bindings.h"

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
    m.doc() = "Kernels of bnb_core for CPUs, a submodule for each level of instructions.";
    m.def("threading", bnb_core::threading, "How kernels run on several threads.");
    bnb_core::bind_repeated(m);
    py::dict missing;
    for (const bnb_core::Level& level : bnb_core::levels()) {
        missing[level.name] = level.missing;
        if (!level.missing.empty()) continue;
        py::module_ submodule = m.def_submodule(level.name);
        bnb_core::bind_blockwise(submodule, level.kernels());
        bnb_core::bind_fourbit(submodule, level.kernels());
        bnb_core::bind_int8(submodule, level.kernels());
        bnb_core::bind_optimizer(submodule, level.kernels());
        bnb_core::bind_statistics(submodule, level.kernels());
    }
    m.attr("LEVELS") = missing;  // level → what this CPU lacks of it, best first
}
