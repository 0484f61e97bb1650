// The floating-point types that kernels read and write, and the one place where a dtype becomes a C++ type.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "native/inline.h"

namespace bnb_core {

enum class DType { float32, float16, bfloat16 };

struct float16 {
    std::uint16_t bits;
};

struct bfloat16 {
    std::uint16_t bits;
};

BNB_INLINE std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

BNB_INLINE float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

constexpr std::uint32_t kInfinityBits = 0x7F800000u;  // larger magnitudes are NaN
constexpr std::uint32_t kNaNBits = 0x7FC00000u;

namespace detail {

// value / 2^shift, rounded to nearest, ties to even; 1 <= shift <= 31, and the rounded-up value must fit 32 bits.
BNB_INLINE std::uint32_t shift_right_to_even(std::uint32_t value, std::uint32_t shift) {
    const std::uint32_t odd = (value >> shift) & 1u;
    return (value + (1u << (shift - 1)) - 1u + odd) >> shift;
}

// A magnitude is the bits of a number without its sign.
BNB_INLINE std::uint32_t float16_magnitude(std::uint32_t magnitude) {
    constexpr std::uint32_t kTooLarge = 0x477FF000u;  // 65520: rounds to 65536, which fp16 does not have
    constexpr std::uint32_t kNormal = 0x38800000u;    // 2^-14, the smallest normal fp16
    constexpr std::uint32_t kTooSmall = 0x33000000u;  // 2^-25: half of the smallest fp16, rounds to zero
    if (magnitude > kInfinityBits) return 0x7E00u;
    if (magnitude >= kTooLarge) return 0x7C00u;
    if (magnitude >= kNormal) return shift_right_to_even(magnitude - ((127u - 15u) << 23), 13);
    if (magnitude <= kTooSmall) return 0u;
    const std::uint32_t significand = (magnitude & 0x007FFFFFu) | 0x00800000u;
    return shift_right_to_even(significand, 126u - (magnitude >> 23));  // in units of 2^-24
}

BNB_INLINE std::uint32_t bfloat16_magnitude(std::uint32_t magnitude) {
    return magnitude > kInfinityBits ? 0x7FC0u : shift_right_to_even(magnitude, 16);
}

}  // namespace detail

// convert<T>(x): x rounded once to T, to nearest and ties to even; NaN stays NaN.
template <class T>
T convert(float value);

template <>
BNB_INLINE float convert<float>(float value) {
    return value;
}

template <>
BNB_INLINE float16 convert<float16>(float value) {
#ifdef __CUDA_ARCH__
    return {__half_as_ushort(__float2half_rn(value))};
#endif
    const std::uint32_t bits = bits_of(value);
    return {static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | detail::float16_magnitude(bits & 0x7FFFFFFFu))};
}

template <>
BNB_INLINE bfloat16 convert<bfloat16>(float value) {
#ifdef __CUDA_ARCH__
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#endif
    const std::uint32_t bits = bits_of(value);
    return {static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | detail::bfloat16_magnitude(bits & 0x7FFFFFFFu))};
}

// to_float(x): exactly x.
BNB_INLINE float to_float(float value) { return value; }

BNB_INLINE float to_float(bfloat16 value) { return float_of(static_cast<std::uint32_t>(value.bits) << 16); }

BNB_INLINE float to_float(float16 value) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(value.bits));
#endif
    const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
    const std::uint32_t magnitude = value.bits & 0x7FFFu;
    if (magnitude < 0x0400u) {  // subnormal: an integer times 2^-24
        return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
    }
    const std::uint32_t exponent = magnitude >= 0x7C00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
    return float_of(sign | ((magnitude << 13) + exponent));
}

// A type as a value that a generic lambda can take.
template <class T>
struct Type {
    using type = T;
};

// Calls visitor(Type<T>{}) for the C++ type T of a dtype.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Visitor>
BNB_INLINE void visit(DType dtype, Visitor&& visitor) {
    switch (dtype) {
        case DType::float32:
            visitor(Type<float>{});
            break;
        case DType::float16:
            visitor(Type<float16>{});
            break;
        case DType::bfloat16:
            visitor(Type<bfloat16>{});
            break;
    }
}

}  // namespace bnb_core
