// Eight numbers in a 256-bit register: AVX2, FMA and F16C (x86-64-v3: Haswell, Zen and later).
#pragma once

#include <immintrin.h>

namespace bnb_core::BNB_LEVEL {

struct F32 {
    static constexpr int size = 8;
    __m256 v;
};

struct I32 {
    static constexpr int size = 8;
    __m256i v;
};

struct I16 {
    static constexpr int size = 16;
    __m256i v;
};

// Lanes of all ones or all zeros.
struct Mask {
    __m256 v;
};

template <class T>
BNB_INLINE F32 load_part(const T* p, int n);
template <class T>
BNB_INLINE void store_part(T* p, F32 v, int n);

BNB_INLINE F32 f32(float x) { return {_mm256_set1_ps(x)}; }
BNB_INLINE I32 i32(std::int32_t x) { return {_mm256_set1_epi32(x)}; }

BNB_INLINE I32 bits(F32 a) { return {_mm256_castps_si256(a.v)}; }
BNB_INLINE F32 from_bits(I32 a) { return {_mm256_castsi256_ps(a.v)}; }

namespace detail {

BNB_INLINE __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The low 16 bits of each lane, in order.
BNB_INLINE __m128i low_halves(__m256i v) {
    const __m256i packed = _mm256_packus_epi32(v, v);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0b1000));
}

BNB_INLINE __m128i to_bfloat16(__m256 v) {
    const __m256i b = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return low_halves(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), nan));
}

}  // namespace detail

BNB_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
BNB_INLINE F32 load(const float16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
BNB_INLINE F32 load(const bfloat16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
BNB_INLINE F32 load(const float* p, int n) { return {_mm256_maskload_ps(p, detail::first_lanes(n))}; }
BNB_INLINE F32 load(const float16* p, int n) { return load_part(p, n); }
BNB_INLINE F32 load(const bfloat16* p, int n) { return load_part(p, n); }

BNB_INLINE void store(float* p, F32 v) { _mm256_storeu_ps(p, v.v); }
BNB_INLINE void store(float16* p, F32 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT));
}
BNB_INLINE void store(bfloat16* p, F32 v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), detail::to_bfloat16(v.v)); }
BNB_INLINE void store(float* p, F32 v, int n) { _mm256_maskstore_ps(p, detail::first_lanes(n), v.v); }
BNB_INLINE void store(float16* p, F32 v, int n) { store_part(p, v, n); }
BNB_INLINE void store(bfloat16* p, F32 v, int n) { store_part(p, v, n); }

BNB_INLINE I32 load_i32(const std::int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
BNB_INLINE void store_i32(std::int32_t* p, I32 v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.v); }
BNB_INLINE I32 load_i32(const std::int32_t* p, int n) { return {_mm256_maskload_epi32(p, detail::first_lanes(n))}; }
BNB_INLINE void store_i32(std::int32_t* p, I32 v, int n) { _mm256_maskstore_epi32(p, detail::first_lanes(n), v.v); }
BNB_INLINE void store_i16(std::int16_t* p, I32 v) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.v, v.v), 0b1000);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
BNB_INLINE void store_i16(std::int16_t* p, I32 v, int n) {
    std::int16_t part[8];
    store_i16(part, v);
    for (int i = 0; i < n; ++i) p[i] = part[i];
}
BNB_INLINE void store_i8(std::int8_t* p, I32 a, I32 b, I32 c, I32 d) {
    // Packing works within the halves of the register: the order is put right at the end.
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(a.v, b.v), _mm256_packs_epi32(c.v, d.v));
    const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), ordered);
}

BNB_INLINE I32 load_u8(const std::uint8_t* p) {
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
BNB_INLINE I32 load_i8(const std::int8_t* p) {
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
BNB_INLINE I32 load_u8(const std::uint8_t* p, int n) {
    std::uint8_t part[8] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return load_u8(part);
}
BNB_INLINE I32 load_i8(const std::int8_t* p, int n) {
    std::int8_t part[8] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return load_i8(part);
}
BNB_INLINE void store_byte(void* p, I32 v) {
    const __m256i low =
        _mm256_shuffle_epi8(v.v, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8,
                                                  12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(static_cast<__m128i*>(p), both);
}
BNB_INLINE void store_byte(void* p, I32 v, int n) {
    std::uint8_t part[8];
    store_byte(part, v);
    for (int i = 0; i < n; ++i) static_cast<std::uint8_t*>(p)[i] = part[i];
}

// Packing works within halves of 128 bits, which leaves runs of four bytes: a0 b0 c0 d0 a1 b1 c1 d1.
BNB_INLINE void store_bytes(void* p, I32 a, I32 b, I32 c, I32 d) {
    const __m256i packed = _mm256_packus_epi16(_mm256_packs_epi32(a.v, b.v), _mm256_packs_epi32(c.v, d.v));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(packed, order));
}

BNB_INLINE F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
BNB_INLINE F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
BNB_INLINE F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
BNB_INLINE F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
BNB_INLINE F32 abs(F32 a) { return {_mm256_and_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF)))}; }
BNB_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
BNB_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
BNB_INLINE F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.v)}; }
BNB_INLINE F32 round_to_even(F32 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
BNB_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }

BNB_INLINE Mask operator<(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
BNB_INLINE Mask operator<=(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
BNB_INLINE Mask operator>(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
BNB_INLINE Mask operator>=(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
BNB_INLINE Mask operator==(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }

BNB_INLINE I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator-(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator*(I32 a, I32 b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator&(I32 a, I32 b) { return {_mm256_and_si256(a.v, b.v)}; }
BNB_INLINE I32 operator|(I32 a, I32 b) { return {_mm256_or_si256(a.v, b.v)}; }
BNB_INLINE I32 operator^(I32 a, I32 b) { return {_mm256_xor_si256(a.v, b.v)}; }
BNB_INLINE I32 min(I32 a, I32 b) { return {_mm256_min_epi32(a.v, b.v)}; }
BNB_INLINE I32 max(I32 a, I32 b) { return {_mm256_max_epi32(a.v, b.v)}; }
BNB_INLINE Mask operator>(I32 a, I32 b) { return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.v, b.v))}; }
BNB_INLINE Mask operator==(I32 a, I32 b) { return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, b.v))}; }
template <int n>
BNB_INLINE I32 shift_left(I32 a) {
    return {_mm256_slli_epi32(a.v, n)};
}
template <int n>
BNB_INLINE I32 shift_right(I32 a) {
    return {_mm256_srli_epi32(a.v, n)};
}
BNB_INLINE I32 shift_right(I32 a, int n) { return {_mm256_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }

BNB_INLINE I32 to_i32(F32 a) { return {_mm256_cvtps_epi32(a.v)}; }
BNB_INLINE I32 truncate(F32 a) { return {_mm256_cvttps_epi32(a.v)}; }
BNB_INLINE F32 to_f32(I32 a) { return {_mm256_cvtepi32_ps(a.v)}; }

BNB_INLINE F32 select(Mask m, F32 a, F32 b) { return {_mm256_blendv_ps(b.v, a.v, m.v)}; }
BNB_INLINE I32 select(Mask m, I32 a, I32 b) { return {_mm256_blendv_epi8(b.v, a.v, _mm256_castps_si256(m.v))}; }
BNB_INLINE Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.v, b.v)}; }
BNB_INLINE Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.v, b.v)}; }
BNB_INLINE Mask operator!(Mask a) { return {_mm256_xor_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))}; }
BNB_INLINE std::uint32_t mask_bits(Mask m) { return static_cast<std::uint32_t>(_mm256_movemask_ps(m.v)); }
BNB_INLINE bool any(Mask m) { return mask_bits(m) != 0; }
BNB_INLINE I32 to_i32(Mask m) { return {_mm256_castps_si256(m.v)}; }

BNB_INLINE std::int32_t reduce_max(I32 a) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0b01001110));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0b10110001));
    return _mm_cvtsi128_si32(m);
}
BNB_INLINE std::int32_t reduce_add(I32 a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0b01001110));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0b10110001));
    return _mm_cvtsi128_si32(s);
}
BNB_INLINE float reduce_add(F32 a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_shuffle_ps(s, s, 1));
    return _mm_cvtss_f32(s);
}

BNB_INLINE I32 increment(I32 a, Mask m) { return {_mm256_sub_epi32(a.v, _mm256_castps_si256(m.v))}; }

struct Table8 {
    __m256 values;
};
BNB_INLINE Table8 table8(const float* values) { return {_mm256_loadu_ps(values)}; }
BNB_INLINE F32 lookup(Table8 table, I32 index) { return {_mm256_permutevar8x32_ps(table.values, index.v)}; }
BNB_INLINE I16 i16(std::int16_t x) { return {_mm256_set1_epi16(x)}; }
BNB_INLINE I16 load_i16(const std::int16_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
BNB_INLINE I16 load_i16(const std::int8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
BNB_INLINE I16 load_i16(const std::int8_t* p, int n) {
    std::int8_t part[16] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return load_i16(part);
}
BNB_INLINE I16 operator&(I16 a, I16 b) { return {_mm256_and_si256(a.v, b.v)}; }
BNB_INLINE I16 max(I16 a, I16 b) { return {_mm256_max_epi16(a.v, b.v)}; }
BNB_INLINE std::int32_t reduce_max(I16 a) {
    const __m256i low = _mm256_srai_epi32(_mm256_slli_epi32(a.v, 16), 16);
    return reduce_max(I32{_mm256_max_epi32(low, _mm256_srai_epi32(a.v, 16))});
}
BNB_INLINE I32 dot(I32 sum, I16 a, I16 b) {
    sum.v = _mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, b.v));
    // Else GCC multiplies a whole tile first and has no registers left for the sums.
    asm("" : "+x"(sum.v));
    return sum;
}

struct Table16 {
    __m256 low, high;
};
BNB_INLINE Table16 table16(const float* values) { return {_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)}; }
BNB_INLINE F32 lookup(Table16 table, I32 index) {
    const __m256 low = _mm256_permutevar8x32_ps(table.low, index.v);
    const __m256 high = _mm256_permutevar8x32_ps(table.high, index.v);
    return {_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index.v, 28)))};
}
namespace detail {

template <class Index>
BNB_INLINE __m128 load_four(const float* p, const Index* index) {
    const __m128 one = _mm_load_ss(p + index[0]);
    const __m128 two = _mm_insert_ps(one, _mm_load_ss(p + index[1]), 0x10);
    const __m128 three = _mm_insert_ps(two, _mm_load_ss(p + index[2]), 0x20);
    return _mm_insert_ps(three, _mm_load_ss(p + index[3]), 0x30);
}

BNB_INLINE __m128i load_four(const std::int32_t* p, const std::int32_t* index) {
    const __m128i one = _mm_cvtsi32_si128(p[index[0]]);
    const __m128i two = _mm_insert_epi32(one, p[index[1]], 1);
    const __m128i three = _mm_insert_epi32(two, p[index[2]], 2);
    return _mm_insert_epi32(three, p[index[3]], 3);
}

}  // namespace detail

// Eight loads beat vgatherdps: 2.2 to 3.4 ns on Zen 3, and Intel's remedy against Downfall does not slow them.
BNB_INLINE F32 gather(const float* p, const std::uint8_t* index) {
    return {_mm256_set_m128(detail::load_four(p, index + 4), detail::load_four(p, index))};
}
BNB_INLINE I32 gather(const std::int32_t* p, const std::int32_t* index) {
    return {_mm256_set_m128i(detail::load_four(p, index + 4), detail::load_four(p, index))};
}
BNB_INLINE F32 gather(const float* p, I32 index) {
    std::int32_t i[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(i), index.v);
    return {_mm256_set_m128(detail::load_four(p, i + 4), detail::load_four(p, i))};
}
BNB_INLINE I32 gather(const std::int32_t* p, I32 index) {
    std::int32_t i[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(i), index.v);
    return gather(p, i);
}

}  // namespace bnb_core::BNB_LEVEL
