// The Python names of the kernels, a file for each family: addresses become pointers, names of dtypes become DType, and
// the GIL is released around each call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "../kernels.h"
#include "function.h"

namespace bnb_core {

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

inline DType dtype_of(std::string_view name) {
    if (name == "float32") return DType::float32;
    if (name == "float16") return DType::float16;
    if (name == "bfloat16") return DType::bfloat16;
    throw std::invalid_argument("unknown dtype '" + std::string(name) + "', known are float32, float16, bfloat16");
}

void bind_blockwise(py::module_& m, const Kernels& kernels);
void bind_fourbit(py::module_& m, const Kernels& kernels);
void bind_int8(py::module_& m, const Kernels& kernels);
void bind_optimizer(py::module_& m, const Kernels& kernels);
void bind_statistics(py::module_& m, const Kernels& kernels);
void bind_repeated(py::module_& m);

}  // namespace bnb_core
