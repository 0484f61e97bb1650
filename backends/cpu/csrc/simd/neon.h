// Four numbers in a 128-bit register: Advanced SIMD, which every aarch64 CPU has.
#pragma once

#include <arm_neon.h>

namespace bnb_core::BNB_LEVEL {

struct F32 {
    static constexpr int size = 4;
    float32x4_t v;
};

struct I32 {
    static constexpr int size = 4;
    int32x4_t v;
};

struct I16 {
    static constexpr int size = 8;
    int16x8_t v;
};

// Lanes of all ones or all zeros.
struct Mask {
    uint32x4_t v;
};

template <class T>
BNB_INLINE F32 load_part(const T* p, int n);
template <class T>
BNB_INLINE void store_part(T* p, F32 v, int n);

BNB_INLINE F32 f32(float x) { return {vdupq_n_f32(x)}; }
BNB_INLINE I32 i32(std::int32_t x) { return {vdupq_n_s32(x)}; }

BNB_INLINE I32 bits(F32 a) { return {vreinterpretq_s32_f32(a.v)}; }
BNB_INLINE F32 from_bits(I32 a) { return {vreinterpretq_f32_s32(a.v)}; }

BNB_INLINE F32 load(const float* p) { return {vld1q_f32(p)}; }
BNB_INLINE F32 load(const float16* p) {
    return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))))};
}
BNB_INLINE F32 load(const bfloat16* p) {
    return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)), 16))};
}
template <class T>
BNB_INLINE F32 load(const T* p, int n) {
    return load_part(p, n);
}

BNB_INLINE void store(float* p, F32 v) { vst1q_f32(p, v.v); }
BNB_INLINE void store(float16* p, F32 v) {
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v.v)));
}
BNB_INLINE void store(bfloat16* p, F32 v) {
    const uint32x4_t b = vreinterpretq_u32_f32(v.v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(b, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(b, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    const uint32x4_t number = vceqq_f32(v.v, v.v);
    const uint32x4_t kept = vbslq_u32(number, rounded, vdupq_n_u32(kNaNBits));
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vshrn_n_u32(kept, 16));
}
template <class T>
BNB_INLINE void store(T* p, F32 v, int n) {
    store_part(p, v, n);
}

BNB_INLINE I32 load_i32(const std::int32_t* p) { return {vld1q_s32(p)}; }
BNB_INLINE I32 load_i32(const std::int32_t* p, int n) {
    std::int32_t part[4] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return load_i32(part);
}
BNB_INLINE void store_i32(std::int32_t* p, I32 v) { vst1q_s32(p, v.v); }
BNB_INLINE void store_i32(std::int32_t* p, I32 v, int n) {
    std::int32_t part[4];
    store_i32(part, v);
    for (int i = 0; i < n; ++i) p[i] = part[i];
}
BNB_INLINE void store_i16(std::int16_t* p, I32 v) { vst1_s16(p, vmovn_s32(v.v)); }
BNB_INLINE void store_i16(std::int16_t* p, I32 v, int n) {
    std::int16_t part[4];
    store_i16(part, v);
    for (int i = 0; i < n; ++i) p[i] = part[i];
}
BNB_INLINE void store_i8(std::int8_t* p, I32 a, I32 b, I32 c, I32 d) {
    const int16x8_t low = vcombine_s16(vmovn_s32(a.v), vmovn_s32(b.v));
    const int16x8_t high = vcombine_s16(vmovn_s32(c.v), vmovn_s32(d.v));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

BNB_INLINE I32 load_u8(const std::uint8_t* p) { return {int32x4_t{p[0], p[1], p[2], p[3]}}; }
BNB_INLINE I32 load_i8(const std::int8_t* p) { return {int32x4_t{p[0], p[1], p[2], p[3]}}; }
BNB_INLINE I32 load_u8(const std::uint8_t* p, int n) {
    std::uint8_t part[4] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return load_u8(part);
}
BNB_INLINE I32 load_i8(const std::int8_t* p, int n) {
    std::int8_t part[4] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return load_i8(part);
}
BNB_INLINE void store_byte(void* p, I32 v) {
    const uint16x4_t half = vmovn_u32(vreinterpretq_u32_s32(v.v));
    const uint8x8_t byte = vmovn_u16(vcombine_u16(half, half));
    vst1_lane_u32(static_cast<std::uint32_t*>(p), vreinterpret_u32_u8(byte), 0);
}
BNB_INLINE void store_byte(void* p, I32 v, int n) {
    std::uint8_t part[4];
    store_byte(part, v);
    for (int i = 0; i < n; ++i) static_cast<std::uint8_t*>(p)[i] = part[i];
}

BNB_INLINE void store_bytes(void* p, I32 a, I32 b, I32 c, I32 d) {
    const int16x8_t ab = vcombine_s16(vqmovn_s32(a.v), vqmovn_s32(b.v));
    const int16x8_t cd = vcombine_s16(vqmovn_s32(c.v), vqmovn_s32(d.v));
    vst1q_u8(static_cast<std::uint8_t*>(p), vcombine_u8(vqmovun_s16(ab), vqmovun_s16(cd)));
}

BNB_INLINE Mask operator<(F32 a, F32 b) { return {vcltq_f32(a.v, b.v)}; }
BNB_INLINE Mask operator<=(F32 a, F32 b) { return {vcleq_f32(a.v, b.v)}; }
BNB_INLINE Mask operator>(F32 a, F32 b) { return {vcgtq_f32(a.v, b.v)}; }
BNB_INLINE Mask operator>=(F32 a, F32 b) { return {vcgeq_f32(a.v, b.v)}; }
BNB_INLINE Mask operator==(F32 a, F32 b) { return {vceqq_f32(a.v, b.v)}; }

BNB_INLINE F32 select(Mask m, F32 a, F32 b) { return {vbslq_f32(m.v, a.v, b.v)}; }
BNB_INLINE I32 select(Mask m, I32 a, I32 b) { return {vbslq_s32(m.v, a.v, b.v)}; }

BNB_INLINE F32 operator+(F32 a, F32 b) { return {vaddq_f32(a.v, b.v)}; }
BNB_INLINE F32 operator-(F32 a, F32 b) { return {vsubq_f32(a.v, b.v)}; }
BNB_INLINE F32 operator*(F32 a, F32 b) { return {vmulq_f32(a.v, b.v)}; }
BNB_INLINE F32 operator/(F32 a, F32 b) { return {vdivq_f32(a.v, b.v)}; }
BNB_INLINE F32 abs(F32 a) { return {vabsq_f32(a.v)}; }
BNB_INLINE F32 min(F32 a, F32 b) { return select(a < b, a, b); }
BNB_INLINE F32 max(F32 a, F32 b) { return select(a > b, a, b); }
BNB_INLINE F32 sqrt(F32 a) { return {vsqrtq_f32(a.v)}; }
BNB_INLINE F32 round_to_even(F32 a) { return {vrndnq_f32(a.v)}; }
BNB_INLINE F32 fma(F32 a, F32 b, F32 c) { return {vfmaq_f32(c.v, a.v, b.v)}; }

BNB_INLINE I32 operator+(I32 a, I32 b) { return {vaddq_s32(a.v, b.v)}; }
BNB_INLINE I32 operator-(I32 a, I32 b) { return {vsubq_s32(a.v, b.v)}; }
BNB_INLINE I32 operator*(I32 a, I32 b) { return {vmulq_s32(a.v, b.v)}; }
BNB_INLINE I32 operator&(I32 a, I32 b) { return {vandq_s32(a.v, b.v)}; }
BNB_INLINE I32 operator|(I32 a, I32 b) { return {vorrq_s32(a.v, b.v)}; }
BNB_INLINE I32 operator^(I32 a, I32 b) { return {veorq_s32(a.v, b.v)}; }
BNB_INLINE I32 min(I32 a, I32 b) { return {vminq_s32(a.v, b.v)}; }
BNB_INLINE I32 max(I32 a, I32 b) { return {vmaxq_s32(a.v, b.v)}; }
BNB_INLINE Mask operator>(I32 a, I32 b) { return {vcgtq_s32(a.v, b.v)}; }
BNB_INLINE Mask operator==(I32 a, I32 b) { return {vceqq_s32(a.v, b.v)}; }
template <int n>
BNB_INLINE I32 shift_left(I32 a) {
    return {vshlq_n_s32(a.v, n)};
}
template <int n>
BNB_INLINE I32 shift_right(I32 a) {
    return {vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.v), n))};
}
BNB_INLINE I32 shift_right(I32 a, int n) {
    return {vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a.v), vdupq_n_s32(-n)))};
}

BNB_INLINE I32 to_i32(F32 a) { return {vcvtnq_s32_f32(a.v)}; }
BNB_INLINE I32 truncate(F32 a) { return {vcvtq_s32_f32(a.v)}; }
BNB_INLINE F32 to_f32(I32 a) { return {vcvtq_f32_s32(a.v)}; }

BNB_INLINE Mask operator&(Mask a, Mask b) { return {vandq_u32(a.v, b.v)}; }
BNB_INLINE Mask operator|(Mask a, Mask b) { return {vorrq_u32(a.v, b.v)}; }
BNB_INLINE Mask operator!(Mask a) { return {vmvnq_u32(a.v)}; }
BNB_INLINE std::uint32_t mask_bits(Mask m) {
    const uint32x4_t lane = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m.v, lane));
}
BNB_INLINE bool any(Mask m) { return vmaxvq_u32(m.v) != 0; }
BNB_INLINE I32 to_i32(Mask m) { return {vreinterpretq_s32_u32(m.v)}; }

BNB_INLINE std::int32_t reduce_max(I32 a) { return vmaxvq_s32(a.v); }
BNB_INLINE std::int32_t reduce_add(I32 a) { return vaddvq_s32(a.v); }
BNB_INLINE float reduce_add(F32 a) {
    const float32x2_t half = vadd_f32(vget_low_f32(a.v), vget_high_f32(a.v));
    return vget_lane_f32(vpadd_f32(half, half), 0);
}

BNB_INLINE I32 increment(I32 a, Mask m) { return {vsubq_s32(a.v, vreinterpretq_s32_u32(m.v))}; }
BNB_INLINE I16 i16(std::int16_t x) { return {vdupq_n_s16(x)}; }
BNB_INLINE I16 load_i16(const std::int16_t* p) { return {vld1q_s16(p)}; }
BNB_INLINE I16 load_i16(const std::int8_t* p) { return {vmovl_s8(vld1_s8(p))}; }
BNB_INLINE I16 load_i16(const std::int8_t* p, int n) {
    std::int8_t part[8] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return load_i16(part);
}
BNB_INLINE I16 operator&(I16 a, I16 b) { return {vandq_s16(a.v, b.v)}; }
BNB_INLINE I16 max(I16 a, I16 b) { return {vmaxq_s16(a.v, b.v)}; }
BNB_INLINE std::int32_t reduce_max(I16 a) { return vmaxvq_s16(a.v); }
BNB_INLINE I32 dot(I32 sum, I16 a, I16 b) {
    return {vmlal_high_s16(vmlal_s16(sum.v, vget_low_s16(a.v), vget_low_s16(b.v)), a.v, b.v)};
}

struct Table16 {
    const float* values;
};
// The table stays where it is: `values` must outlive it.
BNB_INLINE Table16 table16(const float* values) { return {values}; }
BNB_INLINE F32 gather(const float* p, I32 index) {
    return {float32x4_t{p[index.v[0]], p[index.v[1]], p[index.v[2]], p[index.v[3]]}};
}
BNB_INLINE F32 gather(const float* p, const std::uint8_t* index) {
    return {float32x4_t{p[index[0]], p[index[1]], p[index[2]], p[index[3]]}};
}
BNB_INLINE I32 gather(const std::int32_t* p, const std::int32_t* index) {
    return {int32x4_t{p[index[0]], p[index[1]], p[index[2]], p[index[3]]}};
}
BNB_INLINE I32 gather(const std::int32_t* p, I32 index) {
    return {int32x4_t{p[index.v[0]], p[index.v[1]], p[index.v[2]], p[index.v[3]]}};
}
BNB_INLINE F32 lookup(Table16 table, I32 index) { return gather(table.values, index & i32(15)); }

struct Table8 {
    const float* values;
};
BNB_INLINE Table8 table8(const float* values) { return {values}; }
BNB_INLINE F32 lookup(Table8 table, I32 index) { return gather(table.values, index & i32(7)); }

}  // namespace bnb_core::BNB_LEVEL
