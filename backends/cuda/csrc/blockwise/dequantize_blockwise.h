#pragma once

#include <cstdint>

#include "../stream.h"
#include "native/dtype.h"

namespace bnb_core {

// out[i] = code[A[i]] * absmax[i / blocksize] in fp32, rounded once to dtype; NaN for a code past the end of the table.
void dequantize_blockwise(const std::uint8_t* A, const float* absmax, const float* code, std::int64_t code_size,
                          std::int64_t blocksize, std::int64_t n, DType dtype, void* out, Stream stream);

}  // namespace bnb_core
