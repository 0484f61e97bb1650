// Sixteen numbers in a 512-bit register: AVX-512 F, BW, VL and DQ (Skylake-X, Zen 4 and later).
#pragma once

#include <immintrin.h>

namespace bnb_core::BNB_LEVEL {

struct F32 {
    static constexpr int size = 16;
    __m512 v;
};

struct I32 {
    static constexpr int size = 16;
    __m512i v;
};

struct I16 {
    static constexpr int size = 32;
    __m512i v;
};

struct Mask {
    __mmask16 v;
};

BNB_INLINE F32 f32(float x) { return {_mm512_set1_ps(x)}; }
BNB_INLINE I32 i32(std::int32_t x) { return {_mm512_set1_epi32(x)}; }

BNB_INLINE I32 bits(F32 a) { return {_mm512_castps_si512(a.v)}; }
BNB_INLINE F32 from_bits(I32 a) { return {_mm512_castsi512_ps(a.v)}; }

namespace detail {

BNB_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

BNB_INLINE __m256i to_bfloat16(__m512 v) {
    const __m512i b = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7FC0)));
}

BNB_INLINE __m512 from_bfloat16(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

}  // namespace detail

BNB_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
BNB_INLINE F32 load(const float16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
BNB_INLINE F32 load(const bfloat16* p) {
    return {detail::from_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
BNB_INLINE F32 load(const float* p, int n) { return {_mm512_maskz_loadu_ps(detail::first_lanes(n), p)}; }
BNB_INLINE F32 load(const float16* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(detail::first_lanes(n), p))};
}
BNB_INLINE F32 load(const bfloat16* p, int n) {
    return {detail::from_bfloat16(_mm256_maskz_loadu_epi16(detail::first_lanes(n), p))};
}

BNB_INLINE void store(float* p, F32 v) { _mm512_storeu_ps(p, v.v); }
BNB_INLINE void store(float16* p, F32 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT));
}
BNB_INLINE void store(bfloat16* p, F32 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), detail::to_bfloat16(v.v));
}
BNB_INLINE void store(float* p, F32 v, int n) { _mm512_mask_storeu_ps(p, detail::first_lanes(n), v.v); }
BNB_INLINE void store(float16* p, F32 v, int n) {
    _mm256_mask_storeu_epi16(p, detail::first_lanes(n), _mm512_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT));
}
BNB_INLINE void store(bfloat16* p, F32 v, int n) {
    _mm256_mask_storeu_epi16(p, detail::first_lanes(n), detail::to_bfloat16(v.v));
}

BNB_INLINE I32 load_i32(const std::int32_t* p) { return {_mm512_loadu_si512(p)}; }
BNB_INLINE void store_i32(std::int32_t* p, I32 v) { _mm512_storeu_si512(p, v.v); }
BNB_INLINE I32 load_i32(const std::int32_t* p, int n) { return {_mm512_maskz_loadu_epi32(detail::first_lanes(n), p)}; }
BNB_INLINE void store_i32(std::int32_t* p, I32 v, int n) { _mm512_mask_storeu_epi32(p, detail::first_lanes(n), v.v); }
BNB_INLINE void store_i16(std::int16_t* p, I32 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v.v));
}
BNB_INLINE void store_i16(std::int16_t* p, I32 v, int n) {
    _mm256_mask_storeu_epi16(p, detail::first_lanes(n), _mm512_cvtepi32_epi16(v.v));
}
BNB_INLINE void store_i8(std::int8_t* p, I32 a, I32 b, I32 c, I32 d) {
    // Packing works within the quarters of the register: the order is put right at the end.
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, packed));
}

BNB_INLINE I32 load_u8(const std::uint8_t* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
BNB_INLINE I32 load_i8(const std::int8_t* p) {
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
BNB_INLINE I32 load_u8(const std::uint8_t* p, int n) {
    return {_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(detail::first_lanes(n), p))};
}
BNB_INLINE I32 load_i8(const std::int8_t* p, int n) {
    return {_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(detail::first_lanes(n), p))};
}
BNB_INLINE void store_byte(void* p, I32 v) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v.v)); }
BNB_INLINE void store_byte(void* p, I32 v, int n) {
    _mm_mask_storeu_epi8(p, detail::first_lanes(n), _mm512_cvtepi32_epi8(v.v));
}

// Packing works within quarters of 128 bits, which leaves runs of four bytes: a0 b0 c0 d0 a1 b1 ...
BNB_INLINE void store_bytes(void* p, I32 a, I32 b, I32 c, I32 d) {
    const __m512i packed = _mm512_packus_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, packed));
}

BNB_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
BNB_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
BNB_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
BNB_INLINE F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
BNB_INLINE F32 abs(F32 a) { return {_mm512_and_ps(a.v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7FFFFFFF)))}; }
BNB_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
BNB_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
BNB_INLINE F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
BNB_INLINE F32 round_to_even(F32 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
BNB_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

BNB_INLINE Mask operator<(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
BNB_INLINE Mask operator<=(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
BNB_INLINE Mask operator>(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
BNB_INLINE Mask operator>=(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
BNB_INLINE Mask operator==(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }

BNB_INLINE I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator*(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
BNB_INLINE I32 operator|(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
BNB_INLINE I32 operator^(I32 a, I32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
BNB_INLINE I32 min(I32 a, I32 b) { return {_mm512_min_epi32(a.v, b.v)}; }
BNB_INLINE I32 max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
BNB_INLINE Mask operator>(I32 a, I32 b) { return {_mm512_cmpgt_epi32_mask(a.v, b.v)}; }
BNB_INLINE Mask operator==(I32 a, I32 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
template <int n>
BNB_INLINE I32 shift_left(I32 a) {
    return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
BNB_INLINE I32 shift_right(I32 a) {
    return {_mm512_srli_epi32(a.v, n)};
}
BNB_INLINE I32 shift_right(I32 a, int n) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }

BNB_INLINE I32 to_i32(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
BNB_INLINE I32 truncate(F32 a) { return {_mm512_cvttps_epi32(a.v)}; }
BNB_INLINE F32 to_f32(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }

BNB_INLINE F32 select(Mask m, F32 a, F32 b) { return {_mm512_mask_mov_ps(b.v, m.v, a.v)}; }
BNB_INLINE I32 select(Mask m, I32 a, I32 b) { return {_mm512_mask_mov_epi32(b.v, m.v, a.v)}; }
BNB_INLINE Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.v & b.v)}; }
BNB_INLINE Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.v | b.v)}; }
BNB_INLINE Mask operator!(Mask a) { return {static_cast<__mmask16>(~a.v)}; }
BNB_INLINE std::uint32_t mask_bits(Mask m) { return m.v; }
BNB_INLINE bool any(Mask m) { return m.v != 0; }
BNB_INLINE I32 to_i32(Mask m) { return {_mm512_movm_epi32(m.v)}; }

BNB_INLINE std::int32_t reduce_max(I32 a) { return _mm512_reduce_max_epi32(a.v); }
BNB_INLINE std::int32_t reduce_add(I32 a) { return _mm512_reduce_add_epi32(a.v); }
BNB_INLINE float reduce_add(F32 a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_shuffle_ps(s, s, 1));
    return _mm_cvtss_f32(s);
}

BNB_INLINE I32 increment(I32 a, Mask m) { return {_mm512_mask_add_epi32(a.v, m.v, a.v, _mm512_set1_epi32(1))}; }

struct Table8 {
    __m512 twice;
};
BNB_INLINE Table8 table8(const float* values) { return {_mm512_broadcast_f32x8(_mm256_loadu_ps(values))}; }
BNB_INLINE F32 lookup(Table8 table, I32 index) { return {_mm512_permutexvar_ps(index.v, table.twice)}; }
BNB_INLINE I16 i16(std::int16_t x) { return {_mm512_set1_epi16(x)}; }
BNB_INLINE I16 load_i16(const std::int16_t* p) { return {_mm512_loadu_si512(p)}; }
BNB_INLINE I16 load_i16(const std::int8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
BNB_INLINE I16 load_i16(const std::int8_t* p, int n) {
    const __mmask32 lanes = static_cast<__mmask32>((std::uint64_t{1} << n) - 1u);
    return {_mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(lanes, p))};
}
BNB_INLINE I16 operator&(I16 a, I16 b) { return {_mm512_and_si512(a.v, b.v)}; }
BNB_INLINE I16 max(I16 a, I16 b) { return {_mm512_max_epi16(a.v, b.v)}; }
BNB_INLINE std::int32_t reduce_max(I16 a) {
    const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(a.v, 16), 16);
    return reduce_max(I32{_mm512_max_epi32(low, _mm512_srai_epi32(a.v, 16))});
}
BNB_INLINE I32 dot(I32 sum, I16 a, I16 b) {
#if defined(__AVX512VNNI__)
    return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)};
#else
    sum.v = _mm512_add_epi32(sum.v, _mm512_madd_epi16(a.v, b.v));
    // Else GCC multiplies a whole tile first and has no registers left for the sums.
    asm("" : "+v"(sum.v));
    return sum;
#endif
}

struct Table16 {
    __m512 values;
};
BNB_INLINE Table16 table16(const float* values) { return {_mm512_loadu_ps(values)}; }
BNB_INLINE F32 lookup(Table16 table, I32 index) { return {_mm512_permutexvar_ps(index.v, table.values)}; }
BNB_INLINE F32 gather(const float* p, I32 index) { return {_mm512_i32gather_ps(index.v, p, 4)}; }
BNB_INLINE F32 gather(const float* p, const std::uint8_t* index) { return gather(p, load_u8(index)); }
BNB_INLINE I32 gather(const std::int32_t* p, const std::int32_t* index) {
    return {_mm512_i32gather_epi32(_mm512_loadu_si512(index), p, 4)};
}
BNB_INLINE I32 gather(const std::int32_t* p, I32 index) { return {_mm512_i32gather_epi32(index.v, p, 4)}; }

}  // namespace bnb_core::BNB_LEVEL
