// What numbers and strings from Python stand for.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "native/dtype.h"
#include "native/function.h"

namespace bnb_core {

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

}  // namespace bnb_core
