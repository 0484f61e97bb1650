// Positions among the boundaries of a 4-bit type, as packed codes: the element with the even index in the high half of
// a byte.
#pragma once

#include "../simd/simd.h"
#include "native/codebooks.h"

namespace bnb_core::BNB_LEVEL {

class Packer {
  public:
    // Writes the codes of 16 elements, 8 bytes.
    static constexpr int count = 16;
    static constexpr int vectors = count / F32::size;

#if defined(__AVX512F__)
    BNB_INLINE explicit Packer(const FourBit& type)
        : codes_(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(type.ascending)))) {}

    BNB_INLINE void pack(const I32 (&positions)[vectors], std::uint8_t* p) const {
        const __m512i codes = _mm512_permutexvar_epi32(positions[0].v, codes_);
        const __m512i bytes = _mm512_or_si512(_mm512_slli_epi64(codes, 4), _mm512_srli_epi64(codes, 32));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm512_cvtepi64_epi8(bytes));
    }

  private:
    __m512i codes_;
#elif defined(__AVX2__)
    BNB_INLINE explicit Packer(const FourBit& type)
        : codes_(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(type.ascending)))) {}

    BNB_INLINE void pack(const I32 (&positions)[vectors], std::uint8_t* p) const {
        const __m256i m = pairs(_mm256_packs_epi32(positions[0].v, positions[1].v), _mm256_setzero_si256());
        const __m256i bytes = _mm256_packus_epi16(m, m);
        // Each half of the register has two bytes of each vector in turn.
        _mm_storel_epi64(reinterpret_cast<__m128i*>(p),
                         _mm_unpacklo_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
    }

    // 64 elements, 32 bytes: half the instructions.
    BNB_INLINE void pack(const I32 (&positions)[8], std::uint8_t* p) const {
        __m256i words[4];
        for (int i = 0; i < 4; ++i) words[i] = _mm256_packs_epi32(positions[2 * i].v, positions[2 * i + 1].v);
        const __m256i bytes = _mm256_packus_epi16(pairs(words[0], words[1]), pairs(words[2], words[3]));
        const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi16(low, high));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm_unpackhi_epi16(low, high));
    }

  private:
    // From words of positions, words of two codes.
    BNB_INLINE __m256i pairs(__m256i a, __m256i b) const {
        const __m256i codes = _mm256_shuffle_epi8(codes_, _mm256_packus_epi16(a, b));
        return _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0110));
    }

    __m256i codes_;
#else
    BNB_INLINE explicit Packer(const FourBit& type) : codes_(type.ascending) {}

    BNB_INLINE void pack(const I32 (&positions)[vectors], std::uint8_t* p) const {
        std::uint8_t bytes[count];
        for (int i = 0; i < vectors; ++i) store_byte(bytes + i * I32::size, positions[i]);
        for (int i = 0; i < count; i += 2)
            *p++ = static_cast<std::uint8_t>(codes_[bytes[i]] << 4 | codes_[bytes[i + 1]]);
    }

  private:
    const std::uint8_t* codes_;
#endif
};

}  // namespace bnb_core::BNB_LEVEL
