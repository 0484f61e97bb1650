// The Python names of the kernels, a file for each family: addresses become pointers, names of dtypes become DType, and
// the GIL is released around each call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "../kernels.h"
#include "native/arguments.h"

namespace bnb_core {

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

void bind_blockwise(py::module_& m, const Kernels& kernels);
void bind_fourbit(py::module_& m, const Kernels& kernels);
void bind_int8(py::module_& m, const Kernels& kernels);
void bind_optimizer(py::module_& m, const Kernels& kernels);
void bind_statistics(py::module_& m, const Kernels& kernels);
void bind_repeated(py::module_& m);

}  // namespace bnb_core
