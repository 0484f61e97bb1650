// What numbers and strings from Python stand for.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "native/codebooks.h"
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

inline QuantType quant_type_of(std::string_view name) {
    if (name == "nf4") return QuantType::nf4;
    if (name == "fp4") return QuantType::fp4;
    throw std::invalid_argument("unknown quant_type '" + std::string(name) + "', known are nf4, fp4");
}

inline int log2_of(std::int64_t power) {
    int log2 = 0;
    while (power > 1) {
        power >>= 1;
        ++log2;
    }
    return log2;
}

}  // namespace bnb_core
