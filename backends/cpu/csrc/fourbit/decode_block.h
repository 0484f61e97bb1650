// Decoding runs of a 4-bit tensor: the 16 products of the codebook with a block's scale are made and rounded once, and
// each code then picks one of them.
#pragma once

#include <cstring>

#include "decode.h"

namespace bnb_core::BNB_LEVEL {

// The 16 values that the codes of one block stand for, as T. decode<stream>(p, out) writes `size` of them, from
// size / 2 bytes; `stream` goes around the cache and wants `out` aligned to a register. Where `size` is 32, the size of
// two of the smallest blocks, decode16 writes half as many.
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

    BNB_INLINE void decode16(const std::uint8_t* p, T* out) const {
        const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
        const __m256i codes = _mm256_or_si256(_mm256_srli_epi32(bytes, 4), _mm256_slli_epi32(bytes, 16));
        const __m256i v = _mm256_permutexvar_epi16(codes, _mm512_castsi512_si256(values_));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), v);
    }

  private:
    __m512i values_;
};

#elif defined(__AVX2__)

namespace detail {

template <bool stream>
BNB_INLINE void write(void* out, __m256i v) {
    __m256i* const p = static_cast<__m256i*>(out);
    stream ? _mm256_stream_si256(p, v) : _mm256_storeu_si256(p, v);
}

// The codes of packed bytes, each to a byte.
BNB_INLINE __m256i codes_of(__m128i packed) {
    const __m256i bytes = _mm256_cvtepu8_epi16(packed);
    return _mm256_and_si256(_mm256_or_si256(_mm256_srli_epi16(bytes, 4), _mm256_slli_epi16(bytes, 8)),
                            _mm256_set1_epi8(0x0F));
}

}  // namespace detail

// fp32: each of the four bytes of the 16 values a table of vpshufb.
template <>
class BlockValues<float> {
  public:
    static constexpr int size = 32;

    BNB_INLINE BlockValues(const FourBit& type, float scale) {
        // In each half of a register: the lowest bytes of four values, then the next ones.
        const __m256i order =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        const __m256i first = _mm256_shuffle_epi8(bits(load(type.values) * f32(scale)).v, order);
        const __m256i last = _mm256_shuffle_epi8(bits(load(type.values + 8) * f32(scale)).v, order);
        const __m256i low = _mm256_unpacklo_epi32(first, last), high = _mm256_unpackhi_epi32(first, last);
        const __m256i even = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5), odd = _mm256_setr_epi32(2, 6, 3, 7, 2, 6, 3, 7);
        bytes_[0] = _mm256_permutevar8x32_epi32(low, even);
        bytes_[1] = _mm256_permutevar8x32_epi32(low, odd);
        bytes_[2] = _mm256_permutevar8x32_epi32(high, even);
        bytes_[3] = _mm256_permutevar8x32_epi32(high, odd);
    }

    template <bool stream>
    BNB_INLINE void decode(const std::uint8_t* p, float* out) const {
        // Unpacking works in halves of a register: with every other pair of bytes in the upper half its results come
        // out in order.
        const __m128i pairs = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        const __m128i packed = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), pairs);
        const __m256i codes = detail::codes_of(packed);
        __m256i byte[4];
        BNB_UNROLL
        for (int i = 0; i < 4; ++i) byte[i] = _mm256_shuffle_epi8(bytes_[i], codes);
        const __m256i low01 = _mm256_unpacklo_epi8(byte[0], byte[1]), low23 = _mm256_unpacklo_epi8(byte[2], byte[3]);
        const __m256i high01 = _mm256_unpackhi_epi8(byte[0], byte[1]), high23 = _mm256_unpackhi_epi8(byte[2], byte[3]);
        detail::write<stream>(out, _mm256_unpacklo_epi16(low01, low23));
        detail::write<stream>(out + 8, _mm256_unpackhi_epi16(low01, low23));
        detail::write<stream>(out + 16, _mm256_unpacklo_epi16(high01, high23));
        detail::write<stream>(out + 24, _mm256_unpackhi_epi16(high01, high23));
    }

    BNB_INLINE void decode16(const std::uint8_t* p, float* out) const {
        std::uint8_t packed[size / 2] = {};
        float values[size];
        std::memcpy(packed, p, 8);
        decode<false>(packed, values);
        std::memcpy(out, values, 16 * sizeof(float));
    }

  private:
    __m256i bytes_[4];
};

// fp16 and bf16: the low and the high bytes of the 16 values, each a table of vpshufb.
template <class T>
class BlockValues {
  public:
    static constexpr int size = 32;

    BNB_INLINE BlockValues(const FourBit& type, float scale) {
        const F32 given = f32(scale), factor = select(given == given, given, f32(float_of(kNaNBits)));
        const __m256i words = rounded(load(type.values) * factor, load(type.values + 8) * factor, Type<T>{});
        const __m256i low = _mm256_and_si256(words, _mm256_set1_epi16(0xFF));
        // Each half of the register: the low bytes of eight values, then their high bytes.
        const __m256i bytes = _mm256_packus_epi16(low, _mm256_srli_epi16(words, 8));
        low_ = _mm256_permute4x64_epi64(bytes, 0b10001000);
        high_ = _mm256_permute4x64_epi64(bytes, 0b11011101);
    }

    template <bool stream>
    BNB_INLINE void decode(const std::uint8_t* p, T* out) const {
        // Unpacking works in halves of a register: with bytes 4...7 and 8...11 swapped its results come out in order.
        const __m128i packed = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), 0b11011000);
        const __m256i codes = detail::codes_of(packed);
        const __m256i low = _mm256_shuffle_epi8(low_, codes), high = _mm256_shuffle_epi8(high_, codes);
        detail::write<stream>(out, _mm256_unpacklo_epi8(low, high));
        detail::write<stream>(out + 16, _mm256_unpackhi_epi8(low, high));
    }

    BNB_INLINE void decode16(const std::uint8_t* p, T* out) const {
        const __m128i bytes = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
        const __m128i codes =
            _mm_and_si128(_mm_or_si128(_mm_srli_epi16(bytes, 4), _mm_slli_epi16(bytes, 8)), _mm_set1_epi8(0x0F));
        const __m128i low = _mm_shuffle_epi8(_mm256_castsi256_si128(low_), codes);
        const __m128i high = _mm_shuffle_epi8(_mm256_castsi256_si128(high_), codes);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi8(low, high));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8), _mm_unpackhi_epi8(low, high));
    }

  private:
    BNB_INLINE static __m256i rounded(F32 first, F32 last, Type<float16>) {
        const __m128i halves[] = {_mm256_cvtps_ph(first.v, _MM_FROUND_TO_NEAREST_INT),
                                  _mm256_cvtps_ph(last.v, _MM_FROUND_TO_NEAREST_INT)};
        return _mm256_set_m128i(halves[1], halves[0]);
    }

    // To even. The one NaN that comes here survives the addition, unlike others.
    BNB_INLINE static __m256i rounded(F32 first, F32 last, Type<bfloat16>) {
        const auto up = [](F32 x) {
            return shift_right<16>(bits(x) + i32(0x7FFF) + (shift_right<16>(bits(x)) & i32(1))).v;
        };
        return _mm256_permute4x64_epi64(_mm256_packus_epi32(up(first), up(last)), 0b11011000);
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

// To be called by each thread that has written by streams, before others read.
BNB_INLINE void finish_streams() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

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

// Elements [begin, end) of the tensor whose bytes begin at `packed`; scales[b] is that of block b. Blocks begin at
// whole bytes, `begin` may be odd.
template <bool stream, class BlockScales, class T>
BNB_INLINE void decode_run(const FourBit& type, const std::uint8_t* packed, const BlockScales& scales,
                           std::int64_t blocksize, std::int64_t begin, std::int64_t end, T* out) {
    using Values = BlockValues<T>;
    const std::uint8_t* p = packed + begin / 2;
    if (begin % 2 != 0) {
        decode_part(Values(type, scales[begin / blocksize]), p++, 1, 1, out++);
        ++begin;
    }
    std::int64_t block = begin / blocksize;
    std::int64_t in_block = blocksize - begin % blocksize;
    for (std::int64_t left = end - begin; left > 0; ++block) {
        const Values values(type, scales[block]);
        std::int64_t count = in_block < left ? in_block : left;
        left -= count;
        in_block = blocksize;
        for (; count >= Values::size; count -= Values::size) {
            values.template decode<stream>(p, out);
            p += Values::size / 2;
            out += Values::size;
        }
        if constexpr (Values::size == 32) {
            if (count >= 16) {
                values.decode16(p, out);
                p += 8;
                out += 16;
                count -= 16;
            }
        }
        if (count > 0) {
            decode_part(values, p, 0, static_cast<int>(count), out);
            p += count / 2;
            out += count;
        }
    }
}

}  // namespace bnb_core::BNB_LEVEL
