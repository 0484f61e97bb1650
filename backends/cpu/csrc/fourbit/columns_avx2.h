#pragma once

#include "byte_tables_avx2.h"

namespace bnb_core::BNB_LEVEL {

constexpr int kColumns = 16;
constexpr int kStep = 32;

class ColumnDecoder {
  public:
    explicit ColumnDecoder(const FourBit& type) : values_(type) {}

    template <class Take>
    BNB_INLINE void operator()(const std::uint8_t* const* rows, std::int64_t at, Take&& take) const {
        // quads[i]: of bytes 4i … 4i + 3 of each row, rows 0-3 (of each byte in turn) in the low lane, 4-7 in the high.
        __m256i quads[4], later_quads[4];
        transpose(rows, at, quads);
        transpose(rows + 8, at, later_quads);  // rows 8-11, 12-15
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            decode(_mm256_unpacklo_epi32(quads[i], later_quads[i]), 8 * i, take);
            decode(_mm256_unpackhi_epi32(quads[i], later_quads[i]), 8 * i + 4, take);
        }
    }

  private:
    static BNB_INLINE __m256i load_rows(const std::uint8_t* low, const std::uint8_t* high) {
        const __m256i bytes = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low)));
        return _mm256_inserti128_si256(bytes, _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
    }

    static BNB_INLINE void transpose(const std::uint8_t* const* rows, std::int64_t at, __m256i* quads) {
        const __m256i r0 = load_rows(rows[0] + at, rows[4] + at), r1 = load_rows(rows[1] + at, rows[5] + at);
        const __m256i r2 = load_rows(rows[2] + at, rows[6] + at), r3 = load_rows(rows[3] + at, rows[7] + at);
        const __m256i low01 = _mm256_unpacklo_epi8(r0, r1), high01 = _mm256_unpackhi_epi8(r0, r1);
        const __m256i low23 = _mm256_unpacklo_epi8(r2, r3), high23 = _mm256_unpackhi_epi8(r2, r3);
        quads[0] = _mm256_unpacklo_epi16(low01, low23);
        quads[1] = _mm256_unpackhi_epi16(low01, low23);
        quads[2] = _mm256_unpacklo_epi16(high01, high23);
        quads[3] = _mm256_unpackhi_epi16(high01, high23);
    }

    // Two bytes of each row, the first in the low halves of the lanes: four k.
    template <class Take>
    BNB_INLINE void decode(__m256i bytes, int k, Take& take) const {
        const __m256i nibble = _mm256_set1_epi8(15);
        F32 even[4], odd[4];
        values_.lookup(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble), even);
        values_.lookup(_mm256_and_si256(bytes, nibble), odd);
        take(k, even[0], even[1]);
        take(k + 1, odd[0], odd[1]);
        take(k + 2, even[2], even[3]);
        take(k + 3, odd[2], odd[3]);
    }

    ByteTables values_;
};

}  // namespace bnb_core::BNB_LEVEL
