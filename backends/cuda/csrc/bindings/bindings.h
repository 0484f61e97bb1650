// The Python names of the kernels, a file for each family. Each takes the number of a device and the address of a
// stream first; addresses become pointers, names of dtypes become DType, and the GIL is released around each call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string_view>

#include "../runtime.h"
#include "native/arguments.h"

namespace bnb_core {

inline Stream stream_of(Address address) { return reinterpret_cast<Stream>(address); }

void bind_blockwise(py::module_& m);
void bind_fourbit(py::module_& m);
void bind_int8(py::module_& m);
void bind_optimizer(py::module_& m);
void bind_paging(py::module_& m);
void bind_statistics(py::module_& m);

}  // namespace bnb_core
