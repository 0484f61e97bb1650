#pragma once

#include <cstdint>

#include "native/codebooks.h"
#include "native/dtype.h"

namespace bnb_core {

// absmax[b] = largest magnitude of block b of the n elements of A, NaN where one is not finite. packed: for each
// element the code nearest to x * (1 / absmax[b]), the lower one on a boundary, and the code of 0 in blocks of zeros or
// with NaN. 1 / absmax is rounded to fp32, and so is the product; x / absmax where the inverse is no normal number.
// An odd last byte gets the code of 0, the rest of the `size` bytes zeros. blocksize is a multiple of 16.
using Quantize4bit = void(const void* A, DType dtype, std::int64_t n, std::int64_t blocksize, QuantType type,
                          std::uint8_t* packed, std::int64_t size, float* absmax, int threads);

}  // namespace bnb_core
