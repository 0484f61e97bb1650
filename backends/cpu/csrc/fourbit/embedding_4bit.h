#pragma once

#include <cstdint>

#include "native/dtype.h"
#include "native/codebooks.h"
#include "scales.h"

namespace bnb_core {

// int64 or int32 numbers.
struct Indices {
    const void* data;
    bool wide;
    std::int64_t count;

    BNB_INLINE std::int64_t operator[](std::int64_t i) const {
        return wide ? static_cast<const std::int64_t*>(data)[i] : static_cast<const std::int32_t*>(data)[i];
    }
};

// out[i] = row indices[i] of the 4-bit tensor of `rows` times `columns` elements, each its code's value times the scale
// of its block, an fp32 product rounded once to dtype. Returns -1; or the place of the first index that is no row, and
// then nothing was written. blocksize is a multiple of 16.
using Embedding4bit = std::int64_t(Indices indices, const std::uint8_t* packed, std::int64_t rows, std::int64_t columns,
                                   Scales scales, std::int64_t blocksize, QuantType type, DType dtype, void* out,
                                   int threads);

}  // namespace bnb_core
