#pragma once

#include <cstdint>
#include <string_view>

namespace bnb_core {

// out[i] = code[A[i]] * absmax[i / blocksize], an fp32 product rounded once to dtype ("float32", "float16",
// "bfloat16"). A and out hold n elements, absmax one for each block; code holds 1 to 256, and an index past its end
// gives NaN. Throws std::invalid_argument for another dtype.
void dequantize_blockwise(const std::uint8_t* A, const float* absmax, const float* code, std::int64_t code_size,
                          std::int64_t blocksize, std::int64_t n, std::string_view dtype, void* out);

}  // namespace bnb_core
