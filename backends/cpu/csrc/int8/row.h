// One row of activations on its way to int8: its largest magnitude, its outliers, its codes.
#pragma once

#include <cstring>

#include "../simd/simd.h"

namespace bnb_core::BNB_LEVEL {

// The inverse does not overflow from here up.
constexpr float kSmallestInverted = 0x1p-120f;

// Codes for one: rounded twice, as the reference and the public package do.
BNB_INLINE float inverse_of(float absmax) { return 1.0f / absmax * 127.0f; }

// The elements that are outliers: those with a magnitude, as bits, of at least `least`, infinities included.
struct Threshold {
    std::int32_t least;
};

BNB_INLINE Threshold threshold_of(double threshold) {
    return {static_cast<std::int32_t>(bits_of(static_cast<float>(threshold)))};
}

BNB_INLINE Mask is_outlier(Threshold threshold, I32 magnitude) {
    return (magnitude > i32(threshold.least - 1)) & !(magnitude > i32(kInfinityBits));
}

BNB_INLINE I32 magnitude(F32 v) { return bits(v) & i32(0x7FFFFFFF); }

// Several threads may mark the same byte.
BNB_INLINE void mark(std::uint8_t* byte) {
#if defined(__GNUC__)
    __atomic_store_n(byte, std::uint8_t{1}, __ATOMIC_RELAXED);
#else
    *static_cast<volatile std::uint8_t*>(byte) = 1;
#endif
}

// The largest magnitude of a row, as the bits of a float.
BNB_INLINE std::int32_t largest_magnitude(const float* x, std::int64_t count) {
    I32 largest[4] = {i32(0), i32(0), i32(0), i32(0)};
    std::int64_t i = 0;
    for (; i + 4 * F32::size <= count; i += 4 * F32::size) {
        for (int j = 0; j < 4; ++j) largest[j] = max(largest[j], magnitude(load(x + i + j * F32::size)));
    }
    for (; i + F32::size <= count; i += F32::size) largest[0] = max(largest[0], magnitude(load(x + i)));
    if (i < count) largest[0] = max(largest[0], magnitude(load(x + i, static_cast<int>(count - i))));
    return reduce_max(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
}

// Halves are compared as they are: their magnitudes have the order of their bits.
template <class Half>
BNB_INLINE std::int32_t largest_magnitude(const Half* x, std::int64_t count) {
    const std::int16_t* p = reinterpret_cast<const std::int16_t*>(x);
    const I16 without_sign = i16(0x7FFF);
    I16 largest[2] = {i16(0), i16(0)};
    std::int64_t i = 0;
    for (; i + 2 * I16::size <= count; i += 2 * I16::size) {
        for (int j = 0; j < 2; ++j) largest[j] = max(largest[j], load_i16(p + i + j * I16::size) & without_sign);
    }
    I32 rest = i32(0);
    for (; i + F32::size <= count; i += F32::size) rest = max(rest, magnitude(load(x + i)));
    if (i < count) rest = max(rest, magnitude(load(x + i, static_cast<int>(count - i))));
    const std::int32_t half = reduce_max(max(largest[0], largest[1]));
    const std::int32_t found = static_cast<std::int32_t>(bits_of(to_float(Half{static_cast<std::uint16_t>(half)})));
    const std::int32_t last = reduce_max(rest);
    return found > last ? found : last;
}

// The same without outliers, whose columns are marked in `columns`, if given.
template <class T>
BNB_INLINE std::int32_t largest_inlier(const T* x, std::int64_t count, Threshold threshold, std::uint8_t* columns) {
    I32 largest = i32(0);
    for (std::int64_t i = 0; i < count; i += F32::size) {
        const int n = count - i < F32::size ? static_cast<int>(count - i) : F32::size;
        const I32 m = magnitude(n == F32::size ? load(x + i) : load(x + i, n));
        const Mask outlier = is_outlier(threshold, m);
        largest = max(largest, select(outlier, i32(0), m));
        if (columns != nullptr && any(outlier)) {
            const std::uint32_t lanes = mask_bits(outlier);
            for (int j = 0; j < n; ++j) {
                if (lanes >> j & 1u) mark(columns + i + j);
            }
        }
    }
    return reduce_max(largest);
}

// A row with NaN, or with Inf that is no outlier, has NaN.
BNB_INLINE float absmax_of(std::int32_t largest) {
    return float_of(static_cast<std::uint32_t>(largest) < kInfinityBits ? static_cast<std::uint32_t>(largest)
                                                                        : kNaNBits);
}

// How numbers become codes: 127ths of absmax, to nearest and ties to even. Magnitudes of at least `limit` become 0.
template <bool limited, bool inverted>
struct Code {
    F32 absmax, inverse, limit;

    BNB_INLINE I32 operator()(F32 v) const {
        if (limited) v = select(abs(v) < limit, v, f32(0.0f));
        return to_i32(inverted ? v * inverse : v / absmax * f32(127.0f));
    }
};

// Calls f(code) for a row with that absmax > 0; `limit` is infinite where there are no outliers.
template <class F>
BNB_INLINE void with_code(float absmax, float limit, F&& f) {
    const F32 scale = f32(absmax), inverse = f32(inverse_of(absmax)), bound = f32(limit);
    if (absmax < kSmallestInverted) {
        f(Code<true, false>{scale, inverse, bound});
    } else if (limit < float_of(kInfinityBits)) {
        f(Code<true, true>{scale, inverse, bound});
    } else {
        f(Code<false, true>{scale, inverse, bound});
    }
}

// A row as int8; absmax > 0.
template <class T, class Codes>
BNB_INLINE void encode(const T* x, std::int64_t count, const Codes& code, std::int8_t* q) {
    constexpr int size = F32::size;
    std::int64_t i = 0;
    for (; i + 4 * size <= count; i += 4 * size) {
        store_i8(q + i, code(load(x + i)), code(load(x + i + size)), code(load(x + i + 2 * size)),
                 code(load(x + i + 3 * size)));
    }
    for (; i + size <= count; i += size) store_byte(q + i, code(load(x + i)));
    if (i < count) {
        const int rest = static_cast<int>(count - i);
        store_byte(q + i, code(load(x + i, rest)), rest);
    }
}

// Writes 0 to the marked columns of rows of codes [rows, K].
BNB_INLINE void zero_columns(std::int8_t* q, std::int64_t rows, std::int64_t K, const std::uint8_t* columns) {
    constexpr int kSpan = 512;
    for (std::int64_t begin = 0; begin < K; begin += kSpan) {
        std::int64_t found[kSpan];
        int count = 0;
        for (std::int64_t k = begin; k < K && k < begin + kSpan; ++k) {
            found[count] = k;
            count += columns[k];
        }
        for (std::int64_t row = 0; count > 0 && row < rows; ++row) {
            for (int i = 0; i < count; ++i) q[row * K + found[i]] = 0;
        }
    }
}

}  // namespace bnb_core::BNB_LEVEL
