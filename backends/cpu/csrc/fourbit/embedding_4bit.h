#pragma once

#include <cstdint>

#include "native/fourbit.h"

namespace bnb_core {

// out[i] = row indices[i] of the 4-bit tensor of `rows` times `columns` elements, each its code's value times the scale
// of its block, an fp32 product rounded once to dtype. Returns -1; or the place of the first index that is no row, and
// then nothing was written. blocksize is a multiple of 16.
using Embedding4bit = std::int64_t(Indices indices, const std::uint8_t* packed, std::int64_t rows, std::int64_t columns,
                                   Scales scales, std::int64_t blocksize, QuantType type, DType dtype, void* out,
                                   int threads);

}  // namespace bnb_core
