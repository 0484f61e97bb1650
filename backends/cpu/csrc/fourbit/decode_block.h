// Decoding runs of a 4-bit tensor: the 16 products of the codebook with a block's scale are made and rounded once, and
// each code then picks one of them.
#pragma once

#include "decode.h"
#include "scales.h"

namespace bnb_core::BNB_LEVEL {

// The 16 values that the codes of one block stand for, as T. decode<stream>(p, out) writes `size` of them, from
// size / 2 bytes; `stream` goes around the cache and wants `out` aligned to the 32 or 64 bytes of a register.
template <class T>
class BlockValues;

#if defined(__AVX512F__)

template <>
class BlockValues<float> {
  public:
    static constexpr int size = 16;

    BNB_INLINE BlockValues(const FourBit& type, float scale) : values_(table16(type.values)) {
        values_.values = _mm512_mul_ps(values_.values, _mm512_set1_ps(scale));
    }

    template <bool stream>
    BNB_INLINE void decode(const std::uint8_t* p, float* out) const {
        const __m512 v = lookup(values_, codes(p)).v;
        stream ? _mm512_stream_ps(out, v) : _mm512_storeu_ps(out, v);
    }

  private:
    Table16 values_;
};

// fp16 and bf16: the 16 values twice in a register of 32 words, of which vpermw picks by the low five bits.
template <class T>
class BlockValues {
  public:
    static constexpr int size = 32;

    BNB_INLINE BlockValues(const FourBit& type, float scale) {
        T values[16];
        store(values, load(type.values) * f32(scale));
        values_ = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
    }

    template <bool stream>
    BNB_INLINE void decode(const std::uint8_t* p, T* out) const {
        const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        const __m512i codes = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16));
        const __m512i v = _mm512_permutexvar_epi16(codes, values_);
        stream ? _mm512_stream_si512(reinterpret_cast<__m512i*>(out), v) : _mm512_storeu_si512(out, v);
    }

  private:
    __m512i values_;
};

#elif defined(__AVX2__)

template <>
class BlockValues<float> {
  public:
    static constexpr int size = 8;

    BNB_INLINE BlockValues(const FourBit& type, float scale) : values_(table16(type.values)) {
        values_.low = _mm256_mul_ps(values_.low, _mm256_set1_ps(scale));
        values_.high = _mm256_mul_ps(values_.high, _mm256_set1_ps(scale));
    }

    template <bool stream>
    BNB_INLINE void decode(const std::uint8_t* p, float* out) const {
        const __m256 v = lookup(values_, codes(p)).v;
        stream ? _mm256_stream_ps(out, v) : _mm256_storeu_ps(out, v);
    }

  private:
    Table16 values_;
};

// fp16 and bf16: the low and the high bytes of the 16 values, each a table of vpshufb.
template <class T>
class BlockValues {
  public:
    static constexpr int size = 32;

    BNB_INLINE BlockValues(const FourBit& type, float scale) {
        T values[16];
        store(values, load(type.values) * f32(scale));
        store(values + 8, load(type.values + 8) * f32(scale));
        const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
        const __m128i last = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + 8));
        const __m128i byte = _mm_set1_epi16(0xFF);
        low_ = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(last, byte)));
        high_ = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(last, 8)));
    }

    template <bool stream>
    BNB_INLINE void decode(const std::uint8_t* p, T* out) const {
        // Unpacking works in halves of a register: with bytes 4...7 and 8...11 swapped its results come out in order.
        const __m128i packed = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), 0b11011000);
        const __m256i bytes = _mm256_cvtepu8_epi16(packed);
        const __m256i codes = _mm256_and_si256(
            _mm256_or_si256(_mm256_srli_epi16(bytes, 4), _mm256_slli_epi16(bytes, 8)), _mm256_set1_epi8(0x0F));
        const __m256i low = _mm256_shuffle_epi8(low_, codes), high = _mm256_shuffle_epi8(high_, codes);
        write<stream>(out, _mm256_unpacklo_epi8(low, high));
        write<stream>(out + 16, _mm256_unpackhi_epi8(low, high));
    }

  private:
    template <bool stream>
    BNB_INLINE static void write(T* out, __m256i v) {
        __m256i* const p = reinterpret_cast<__m256i*>(out);
        stream ? _mm256_stream_si256(p, v) : _mm256_storeu_si256(p, v);
    }

    __m256i low_, high_;
};

#else

template <class T>
class BlockValues {
  public:
    static constexpr int size = 2;

    BNB_INLINE BlockValues(const FourBit& type, float scale) {
        for (int i = 0; i < 16; i += F32::size) store(values_ + i, load(type.values + i) * f32(scale));
    }

    template <bool>
    BNB_INLINE void decode(const std::uint8_t* p, T* out) const {
        out[0] = values_[*p >> 4];
        out[1] = values_[*p & 15];
    }

  private:
    T values_[16];
};

#endif

// `count` elements from the one after `skip` on, through memory that is large enough; skip + count <= size.
template <class T>
BNB_INLINE void decode_part(const BlockValues<T>& values, const std::uint8_t* p, int skip, int count, T* out) {
    constexpr int size = BlockValues<T>::size;
    std::uint8_t packed[size / 2] = {};
    T part[size];
    for (int i = 0; 2 * i < skip + count; ++i) packed[i] = p[i];
    values.template decode<false>(packed, part);
    for (int i = 0; i < count; ++i) out[i] = part[skip + i];
}

// Elements [begin, end) of the tensor whose bytes begin at `packed`. Blocks begin at whole bytes, `begin` may be odd.
template <bool stream, class T>
BNB_INLINE void decode_run(const FourBit& type, const std::uint8_t* packed, const Scales& scales,
                           std::int64_t blocksize, std::int64_t begin, std::int64_t end, T* out) {
    constexpr int size = BlockValues<T>::size;
    std::int64_t block = begin / blocksize;
    for (std::int64_t i = begin; i < end; ++block) {
        const BlockValues<T> values(type, scales[block]);
        const std::int64_t stop = end - block * blocksize > blocksize ? (block + 1) * blocksize : end;
        if (i % 2 != 0) {
            decode_part(values, packed + i / 2, 1, 1, out++);
            ++i;
        }
        for (; i + size <= stop; i += size, out += size) values.template decode<stream>(packed + i / 2, out);
        if (i < stop) {
            const int rest = static_cast<int>(stop - i);
            decode_part(values, packed + i / 2, 0, rest, out);
            i += rest;
            out += rest;
        }
    }
}

}  // namespace bnb_core::BNB_LEVEL
