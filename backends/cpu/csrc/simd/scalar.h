// Vectors of four numbers in plain C++: any machine, and the compiler makes of it what the baseline has.
#pragma once

#include <cmath>

namespace bnb_core::BNB_LEVEL {

struct F32 {
    static constexpr int size = 4;
    float v[size];
};

struct I32 {
    static constexpr int size = 4;
    std::int32_t v[size];
};

struct I16 {
    static constexpr int size = 8;
    std::int16_t v[size];
};

struct Mask {
    bool v[4];
};

namespace detail {

template <class R, class F>
BNB_INLINE R each(F&& f) {
    R result;
    for (int i = 0; i < 4; ++i) result.v[i] = f(i);
    return result;
}

}  // namespace detail

#define BNB_EACH(R, expression) detail::each<R>([&](int i) BNB_LAMBDA_INLINE { return expression; })

BNB_INLINE F32 f32(float x) { return {{x, x, x, x}}; }
BNB_INLINE I32 i32(std::int32_t x) { return {{x, x, x, x}}; }

template <class T>
BNB_INLINE F32 load(const T* p) {
    return BNB_EACH(F32, to_float(p[i]));
}
template <class T>
BNB_INLINE void store(T* p, F32 v) {
    for (int i = 0; i < 4; ++i) p[i] = convert<T>(v.v[i]);
}
template <class T>
BNB_INLINE F32 load(const T* p, int n) {
    return BNB_EACH(F32, i < n ? to_float(p[i]) : 0.0f);
}
template <class T>
BNB_INLINE void store(T* p, F32 v, int n) {
    for (int i = 0; i < 4 && i < n; ++i) p[i] = convert<T>(v.v[i]);
}
BNB_INLINE I32 load_i32(const std::int32_t* p) { return BNB_EACH(I32, p[i]); }
BNB_INLINE void store_i32(std::int32_t* p, I32 v) {
    for (int i = 0; i < 4; ++i) p[i] = v.v[i];
}
BNB_INLINE I32 load_i32(const std::int32_t* p, int n) { return BNB_EACH(I32, i < n ? p[i] : 0); }
BNB_INLINE void store_i32(std::int32_t* p, I32 v, int n) {
    for (int i = 0; i < 4 && i < n; ++i) p[i] = v.v[i];
}
BNB_INLINE void store_i16(std::int16_t* p, I32 v) {
    for (int i = 0; i < 4; ++i) p[i] = static_cast<std::int16_t>(v.v[i]);
}
BNB_INLINE void store_i16(std::int16_t* p, I32 v, int n) {
    for (int i = 0; i < 4 && i < n; ++i) p[i] = static_cast<std::int16_t>(v.v[i]);
}
BNB_INLINE I32 load_u8(const std::uint8_t* p) { return BNB_EACH(I32, p[i]); }
BNB_INLINE I32 load_u8(const std::uint8_t* p, int n) { return BNB_EACH(I32, i < n ? p[i] : 0); }
BNB_INLINE I32 load_i8(const std::int8_t* p) { return BNB_EACH(I32, p[i]); }
BNB_INLINE I32 load_i8(const std::int8_t* p, int n) { return BNB_EACH(I32, i < n ? p[i] : 0); }
BNB_INLINE void store_byte(void* p, I32 v) {
    for (int i = 0; i < 4; ++i) static_cast<std::uint8_t*>(p)[i] = static_cast<std::uint8_t>(v.v[i]);
}
BNB_INLINE void store_byte(void* p, I32 v, int n) {
    for (int i = 0; i < 4 && i < n; ++i) static_cast<std::uint8_t*>(p)[i] = static_cast<std::uint8_t>(v.v[i]);
}

BNB_INLINE void store_i8(std::int8_t* p, I32 a, I32 b, I32 c, I32 d) {
    store_byte(p, a);
    store_byte(p + 4, b);
    store_byte(p + 8, c);
    store_byte(p + 12, d);
}

BNB_INLINE F32 operator+(F32 a, F32 b) { return BNB_EACH(F32, a.v[i] + b.v[i]); }
BNB_INLINE F32 operator-(F32 a, F32 b) { return BNB_EACH(F32, a.v[i] - b.v[i]); }
BNB_INLINE F32 operator*(F32 a, F32 b) { return BNB_EACH(F32, a.v[i] * b.v[i]); }
BNB_INLINE F32 operator/(F32 a, F32 b) { return BNB_EACH(F32, a.v[i] / b.v[i]); }
BNB_INLINE F32 abs(F32 a) { return BNB_EACH(F32, float_of(bits_of(a.v[i]) & 0x7FFFFFFFu)); }
BNB_INLINE F32 min(F32 a, F32 b) { return BNB_EACH(F32, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
BNB_INLINE F32 max(F32 a, F32 b) { return BNB_EACH(F32, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
BNB_INLINE F32 sqrt(F32 a) { return BNB_EACH(F32, std::sqrt(a.v[i])); }
BNB_INLINE F32 round_to_even(F32 a) { return BNB_EACH(F32, std::nearbyintf(a.v[i])); }
BNB_INLINE F32 fma(F32 a, F32 b, F32 c) { return BNB_EACH(F32, std::fmaf(a.v[i], b.v[i], c.v[i])); }

BNB_INLINE Mask operator<(F32 a, F32 b) { return BNB_EACH(Mask, a.v[i] < b.v[i]); }
BNB_INLINE Mask operator<=(F32 a, F32 b) { return BNB_EACH(Mask, a.v[i] <= b.v[i]); }
BNB_INLINE Mask operator>(F32 a, F32 b) { return BNB_EACH(Mask, a.v[i] > b.v[i]); }
BNB_INLINE Mask operator>=(F32 a, F32 b) { return BNB_EACH(Mask, a.v[i] >= b.v[i]); }
BNB_INLINE Mask operator==(F32 a, F32 b) { return BNB_EACH(Mask, a.v[i] == b.v[i]); }

namespace detail {
BNB_INLINE std::uint32_t u(std::int32_t x) { return static_cast<std::uint32_t>(x); }
BNB_INLINE std::int32_t s(std::uint32_t x) { return static_cast<std::int32_t>(x); }
}  // namespace detail

BNB_INLINE I32 operator+(I32 a, I32 b) { return BNB_EACH(I32, detail::s(detail::u(a.v[i]) + detail::u(b.v[i]))); }
BNB_INLINE I32 operator-(I32 a, I32 b) { return BNB_EACH(I32, detail::s(detail::u(a.v[i]) - detail::u(b.v[i]))); }
BNB_INLINE I32 operator*(I32 a, I32 b) { return BNB_EACH(I32, detail::s(detail::u(a.v[i]) * detail::u(b.v[i]))); }
BNB_INLINE I32 operator&(I32 a, I32 b) { return BNB_EACH(I32, a.v[i] & b.v[i]); }
BNB_INLINE I32 operator|(I32 a, I32 b) { return BNB_EACH(I32, a.v[i] | b.v[i]); }
BNB_INLINE I32 operator^(I32 a, I32 b) { return BNB_EACH(I32, a.v[i] ^ b.v[i]); }
BNB_INLINE I32 min(I32 a, I32 b) { return BNB_EACH(I32, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
BNB_INLINE I32 max(I32 a, I32 b) { return BNB_EACH(I32, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
BNB_INLINE void store_bytes(void* p, I32 a, I32 b, I32 c, I32 d) {
    std::uint8_t* bytes = static_cast<std::uint8_t*>(p);
    const I32 least = i32(0), most = i32(255);
    store_byte(bytes, min(max(a, least), most));
    store_byte(bytes + 4, min(max(b, least), most));
    store_byte(bytes + 8, min(max(c, least), most));
    store_byte(bytes + 12, min(max(d, least), most));
}

BNB_INLINE Mask operator>(I32 a, I32 b) { return BNB_EACH(Mask, a.v[i] > b.v[i]); }
BNB_INLINE Mask operator==(I32 a, I32 b) { return BNB_EACH(Mask, a.v[i] == b.v[i]); }
template <int n>
BNB_INLINE I32 shift_left(I32 a) {
    return BNB_EACH(I32, detail::s(detail::u(a.v[i]) << n));
}
template <int n>
BNB_INLINE I32 shift_right(I32 a) {
    return BNB_EACH(I32, detail::s(detail::u(a.v[i]) >> n));
}
BNB_INLINE I32 shift_right(I32 a, int n) { return BNB_EACH(I32, detail::s(detail::u(a.v[i]) >> n)); }

BNB_INLINE I32 bits(F32 a) { return BNB_EACH(I32, detail::s(bits_of(a.v[i]))); }
BNB_INLINE F32 from_bits(I32 a) { return BNB_EACH(F32, float_of(detail::u(a.v[i]))); }
BNB_INLINE I32 to_i32(F32 a) { return BNB_EACH(I32, static_cast<std::int32_t>(std::nearbyintf(a.v[i]))); }
BNB_INLINE I32 truncate(F32 a) { return BNB_EACH(I32, static_cast<std::int32_t>(a.v[i])); }
BNB_INLINE F32 to_f32(I32 a) { return BNB_EACH(F32, static_cast<float>(a.v[i])); }

BNB_INLINE F32 select(Mask m, F32 a, F32 b) { return BNB_EACH(F32, m.v[i] ? a.v[i] : b.v[i]); }
BNB_INLINE I32 select(Mask m, I32 a, I32 b) { return BNB_EACH(I32, m.v[i] ? a.v[i] : b.v[i]); }
BNB_INLINE Mask operator&(Mask a, Mask b) { return BNB_EACH(Mask, a.v[i] && b.v[i]); }
BNB_INLINE Mask operator|(Mask a, Mask b) { return BNB_EACH(Mask, a.v[i] || b.v[i]); }
BNB_INLINE Mask operator!(Mask a) { return BNB_EACH(Mask, !a.v[i]); }
BNB_INLINE std::uint32_t mask_bits(Mask m) {
    std::uint32_t result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<std::uint32_t>(m.v[i]) << i;
    return result;
}
BNB_INLINE bool any(Mask m) { return mask_bits(m) != 0; }
BNB_INLINE I32 to_i32(Mask m) { return BNB_EACH(I32, m.v[i] ? -1 : 0); }

BNB_INLINE std::int32_t reduce_max(I32 a) {
    std::int32_t result = a.v[0];
    for (int i = 1; i < 4; ++i) result = a.v[i] > result ? a.v[i] : result;
    return result;
}
BNB_INLINE std::int32_t reduce_add(I32 a) {
    return detail::s(detail::u(a.v[0]) + detail::u(a.v[1]) + detail::u(a.v[2]) + detail::u(a.v[3]));
}
BNB_INLINE float reduce_add(F32 a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }

BNB_INLINE I32 increment(I32 a, Mask m) { return BNB_EACH(I32, a.v[i] + (m.v[i] ? 1 : 0)); }
namespace detail {

template <class F>
BNB_INLINE I16 each_i16(F&& f) {
    I16 result;
    for (int i = 0; i < I16::size; ++i) result.v[i] = static_cast<std::int16_t>(f(i));
    return result;
}

}  // namespace detail

#define BNB_EACH_I16(expression) detail::each_i16([&](int i) BNB_LAMBDA_INLINE { return expression; })

BNB_INLINE I16 i16(std::int16_t x) { return BNB_EACH_I16((void(i), x)); }
template <class T>
BNB_INLINE I16 load_i16(const T* p) {
    return BNB_EACH_I16(p[i]);
}
BNB_INLINE I16 load_i16(const std::int8_t* p, int n) { return BNB_EACH_I16(i < n ? p[i] : 0); }
BNB_INLINE I16 operator&(I16 a, I16 b) { return BNB_EACH_I16(a.v[i] & b.v[i]); }
BNB_INLINE I16 max(I16 a, I16 b) { return BNB_EACH_I16(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
BNB_INLINE std::int32_t reduce_max(I16 a) {
    std::int32_t result = a.v[0];
    for (int i = 1; i < I16::size; ++i) result = a.v[i] > result ? a.v[i] : result;
    return result;
}
BNB_INLINE I32 dot(I32 sum, I16 a, I16 b) {
    return BNB_EACH(I32, sum.v[i] + a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1]);
}

struct Table16 {
    const float* values;
};
// The table stays where it is: `values` must outlive it.
BNB_INLINE Table16 table16(const float* values) { return {values}; }
BNB_INLINE F32 lookup(Table16 table, I32 index) { return BNB_EACH(F32, table.values[index.v[i] & 15]); }
struct Table8 {
    const float* values;
};
BNB_INLINE Table8 table8(const float* values) { return {values}; }
BNB_INLINE F32 lookup(Table8 table, I32 index) { return BNB_EACH(F32, table.values[index.v[i] & 7]); }
BNB_INLINE F32 gather(const float* p, I32 index) { return BNB_EACH(F32, p[index.v[i]]); }
BNB_INLINE F32 gather(const float* p, const std::uint8_t* index) { return BNB_EACH(F32, p[index[i]]); }
BNB_INLINE I32 gather(const std::int32_t* p, const std::int32_t* index) { return BNB_EACH(I32, p[index[i]]); }
BNB_INLINE I32 gather(const std::int32_t* p, I32 index) { return BNB_EACH(I32, p[index.v[i]]); }

}  // namespace bnb_core::BNB_LEVEL
