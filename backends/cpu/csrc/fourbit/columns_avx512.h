#pragma once

namespace bnb_core::BNB_LEVEL {

constexpr int kColumns = 32;
constexpr int kStep = 32;

class ColumnDecoder {
  public:
    explicit ColumnDecoder(const FourBit& type) : values_(table16(type.values)) {}

    template <class Take>
    BNB_INLINE void operator()(const std::uint8_t* const* rows, std::int64_t at, Take&& take) const {
        // A 16 x 16 transpose of bytes in each lane, rows 0-15 in the low one and 16-31 in the high: in four steps
        // that interleave row i with row i + 8, byte j of all rows comes to stand in v[j].
        __m256i v[16], w[16];
        for (int i = 0; i < 16; ++i) v[i] = load_rows(rows[i] + at, rows[i + 16] + at);
        interleave(v, w);
        interleave(w, v);
        interleave(v, w);
        interleave(w, v);
        for (int j = 0; j < 16; ++j) {
            const I32 first = {_mm512_cvtepu8_epi32(_mm256_castsi256_si128(v[j]))};
            const I32 second = {_mm512_cvtepu8_epi32(_mm256_extracti128_si256(v[j], 1))};
            take(2 * j, lookup(values_, shift_right<4>(first)), lookup(values_, shift_right<4>(second)));
            take(2 * j + 1, lookup(values_, first), lookup(values_, second));  // vpermps looks at the low four bits
        }
    }

  private:
    static BNB_INLINE __m256i load_rows(const std::uint8_t* low, const std::uint8_t* high) {
        const __m256i bytes = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low)));
        return _mm256_inserti128_si256(bytes, _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
    }

    static BNB_INLINE void interleave(const __m256i* from, __m256i* to) {
        for (int i = 0; i < 8; ++i) {
            to[2 * i] = _mm256_unpacklo_epi8(from[i], from[i + 8]);
            to[2 * i + 1] = _mm256_unpackhi_epi8(from[i], from[i + 8]);
        }
    }

    Table16 values_;
};

}  // namespace bnb_core::BNB_LEVEL
