#pragma once

#include "../simd/simd.h"
#include "native/codebooks.h"

namespace bnb_core::BNB_LEVEL {

// AVX2 looks up 32 bytes in a table of 16 at once (vpshufb), and Zen 3 does two of these a cycle, but one vpermps in
// two: the bytes of the fp32 values are looked up one by one and interleaved, three shuffles for a vector.
class ByteTables {
  public:
    explicit ByteTables(const FourBit& type) {
        for (int byte = 0; byte < 4; ++byte) {
            alignas(16) std::uint8_t table[16];
            for (int code = 0; code < 16; ++code) {
                table[code] = static_cast<std::uint8_t>(bits_of(type.values[code]) >> (8 * byte));
            }
            bytes_[byte] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
        }
    }

    // values[i] = those of the bytes 4i ... 4i + 3 of both halves of `codes`.
    BNB_INLINE void lookup(__m256i codes, F32* values) const {
        const __m256i byte0 = _mm256_shuffle_epi8(bytes_[0], codes), byte1 = _mm256_shuffle_epi8(bytes_[1], codes);
        const __m256i byte2 = _mm256_shuffle_epi8(bytes_[2], codes), byte3 = _mm256_shuffle_epi8(bytes_[3], codes);
        const __m256i low01 = _mm256_unpacklo_epi8(byte0, byte1), high01 = _mm256_unpackhi_epi8(byte0, byte1);
        const __m256i low23 = _mm256_unpacklo_epi8(byte2, byte3), high23 = _mm256_unpackhi_epi8(byte2, byte3);
        values[0] = {_mm256_castsi256_ps(_mm256_unpacklo_epi16(low01, low23))};
        values[1] = {_mm256_castsi256_ps(_mm256_unpackhi_epi16(low01, low23))};
        values[2] = {_mm256_castsi256_ps(_mm256_unpacklo_epi16(high01, high23))};
        values[3] = {_mm256_castsi256_ps(_mm256_unpackhi_epi16(high01, high23))};
    }

  private:
    __m256i bytes_[4];
};

}  // namespace bnb_core::BNB_LEVEL
