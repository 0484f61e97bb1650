// The scales of the blocks of a 4-bit tensor, plain or nested.
#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace bnb_core {

// Plain: absmax[b] for block b, and no codes. Nested (QLoRA's double quantization): an 8-bit code for each block, one
// absmax for 256 codes, and an offset. An index past the end of the codebook gives NaN.
struct Scales {
    static constexpr std::int64_t kGroup = 256;

    const float* absmax;
    const std::uint8_t* codes = nullptr;
    const float* codebook = nullptr;
    std::int64_t codebook_size = 0;
    const float* offset = nullptr;

    BNB_INLINE float operator[](std::int64_t block) const {
        if (codes == nullptr) return absmax[block];
        const float value = codes[block] < codebook_size ? codebook[codes[block]] : float_of(kNaNBits);
        return value * absmax[block / kGroup] + *offset;
    }
};

}  // namespace bnb_core
