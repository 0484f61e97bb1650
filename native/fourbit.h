// 4-bit weights as they are stored.
#pragma once

#include <cstdint>

#include "native/codebooks.h"
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
        return value * absmax[static_cast<std::uint64_t>(block) / kGroup] + *offset;
    }
};

// A weight [N, K] as it is stored: one run of N * K codes, two to a byte, in blocks that go over the ends of rows.
struct Weight4bit {
    const std::uint8_t* packed;
    std::int64_t N, K;
    Scales scales;
    int blocksize_log2;  // of 16 or more
    QuantType type;
    const float* values = nullptr;  // 16, of the codes where they are of no type
};

// int64 or int32 numbers.
struct Indices {
    const void* data;
    bool wide;
    std::int64_t count;

    BNB_INLINE std::int64_t operator[](std::int64_t i) const {
        return wide ? static_cast<const std::int64_t*>(data)[i] : static_cast<const std::int32_t*>(data)[i];
    }
};

}  // namespace bnb_core
