// Decoding a row of a 4-bit weight along k, in whatever order is cheapest: the activations are put in the same order.
//
// Every level has the same names in RowDecoder:
//   decoder(p, take)     decodes the kRun codes of kRun / 2 bytes and calls take(i, w) for the vectors i of their
//   values,
//                        not scaled
//   element(i, lane)     which of the codes stands in a lane of vector i
//   scale(scales, i)     for vector i the scales of its lanes, from those of 16 codes each
#pragma once

#include "decode.h"
#if defined(__AVX2__) && !defined(__AVX512F__)
#include "byte_tables_avx2.h"
#endif

namespace bnb_core::BNB_LEVEL {

constexpr int kRun = 64;

#if defined(__AVX512F__)

class RowDecoder {
  public:
    explicit RowDecoder(const FourBit& type) : values_(table16(type.values)) {}

    static int element(int i, int lane) { return 32 * (i / 2) + 2 * lane + i % 2; }

    BNB_INLINE static F32 scale(const float* scales, int i) {
        const __m512 low = _mm512_set1_ps(scales[i / 2 * 2]), high = _mm512_set1_ps(scales[i / 2 * 2 + 1]);
        return {_mm512_mask_blend_ps(0xFF00, low, high)};
    }

    template <class Take>
    BNB_INLINE void operator()(const std::uint8_t* p, Take&& take) const {
        BNB_UNROLL
        for (int i = 0; i < 4; i += 2) {
            const I32 bytes = load_u8(p + 8 * i);
            take(i, lookup(values_, shift_right<4>(bytes)));
            take(i + 1, lookup(values_, bytes));  // vpermps looks at the low four bits
        }
    }

  private:
    Table16 values_;
};

#elif defined(__AVX2__)

class RowDecoder {
  public:
    explicit RowDecoder(const FourBit& type) : values_(type) {}

    // Lanes 0 to 3 are of the first 16 bytes, 4 to 7 of the last; the first four vectors of the upper halves of bytes.
    static int element(int i, int lane) { return 32 * (lane / 4) + 8 * (i % 4) + 2 * (lane % 4) + i / 4; }

    BNB_INLINE static F32 scale(const float* scales, int i) {
        const int first = i % 4 / 2;
        return {_mm256_set_m128(_mm_set1_ps(scales[first + 2]), _mm_set1_ps(scales[first]))};
    }

    template <class Take>
    BNB_INLINE void operator()(const std::uint8_t* p, Take&& take) const {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), nibble = _mm256_set1_epi8(15);
        F32 values[4];
        values_.lookup(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble), values);
        BNB_UNROLL
        for (int i = 0; i < 4; ++i) take(i, values[i]);
        values_.lookup(_mm256_and_si256(bytes, nibble), values);
        BNB_UNROLL
        for (int i = 0; i < 4; ++i) take(i + 4, values[i]);
    }

  private:
    ByteTables values_;
};

#else

class RowDecoder {
  public:
    explicit RowDecoder(const FourBit& type) : values_(table16(type.values)) {}

    static int element(int i, int lane) { return i * F32::size + lane; }

    BNB_INLINE static F32 scale(const float* scales, int i) { return f32(scales[i * F32::size / 16]); }

    template <class Take>
    BNB_INLINE void operator()(const std::uint8_t* p, Take&& take) const {
        for (int i = 0; i < kRun / F32::size; ++i) take(i, decode(values_, p + i * F32::size / 2));
    }

  private:
    Table16 values_;
};

#endif

}  // namespace bnb_core::BNB_LEVEL
