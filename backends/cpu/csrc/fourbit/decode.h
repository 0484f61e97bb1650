// Packed 4-bit codes as vectors. The element with the even index stands in the high half of a byte.
#pragma once

#include "../simd/simd.h"
#include "native/codebooks.h"

namespace bnb_core::BNB_LEVEL {

// The F32::size codes of F32::size / 2 bytes, in the low four bits of the lanes: all that `lookup` looks at. The other
// bits may be anything.
BNB_INLINE I32 codes(const std::uint8_t* p) {
#if defined(__AVX512F__)
    const __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return {_mm512_or_si512(_mm512_srli_epi64(bytes, 4), _mm512_slli_epi64(bytes, 32))};
#elif defined(__AVX2__)
    std::int32_t bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return {_mm256_srlv_epi32(_mm256_set1_epi32(bytes), _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24))};
#else
    const std::int32_t lanes[] = {p[0] >> 4, p[0], p[1] >> 4, p[1]};
    I32 result;
    std::memcpy(&result.v, lanes, sizeof lanes);
    return result;
#endif
}

// The values of the F32::size codes of F32::size / 2 bytes, in order, not scaled.
BNB_INLINE F32 decode(Table16 values, const std::uint8_t* p) { return lookup(values, codes(p)); }

}  // namespace bnb_core::BNB_LEVEL
