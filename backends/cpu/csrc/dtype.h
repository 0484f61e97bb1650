// The floating-point types that kernels read and write, and the one place where a dtype's name becomes a C++ type.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace bnb_core {

struct float16 {
    std::uint16_t bits;
};

struct bfloat16 {
    std::uint16_t bits;
};

namespace detail {

constexpr std::uint32_t kInfinity = 0x7F800000u;  // of fp32; larger magnitudes are NaN

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// value / 2^shift, rounded to nearest, ties to even; 1 <= shift <= 31, and the rounded-up value must fit 32 bits.
inline std::uint32_t shift_right_to_even(std::uint32_t value, std::uint32_t shift) {
    const std::uint32_t odd = (value >> shift) & 1u;
    return (value + (1u << (shift - 1)) - 1u + odd) >> shift;
}

// A magnitude is the bits of an fp32 number without its sign.
inline std::uint32_t float16_magnitude(std::uint32_t magnitude) {
    constexpr std::uint32_t kTooLarge = 0x477FF000u;  // 65520: rounds to 65536, which fp16 does not have
    constexpr std::uint32_t kNormal = 0x38800000u;    // 2^-14, the smallest normal fp16
    constexpr std::uint32_t kTooSmall = 0x33000000u;  // 2^-25: half of the smallest fp16, rounds to zero
    if (magnitude > kInfinity) return 0x7E00u;
    if (magnitude >= kTooLarge) return 0x7C00u;
    if (magnitude >= kNormal) return shift_right_to_even(magnitude - ((127u - 15u) << 23), 13);
    if (magnitude <= kTooSmall) return 0u;
    const std::uint32_t significand = (magnitude & 0x007FFFFFu) | 0x00800000u;
    return shift_right_to_even(significand, 126u - (magnitude >> 23));  // in units of 2^-24
}

inline std::uint32_t bfloat16_magnitude(std::uint32_t magnitude) {
    return magnitude > kInfinity ? 0x7FC0u : shift_right_to_even(magnitude, 16);
}

}  // namespace detail

// from_float<T>(x): x rounded once to T, to nearest and ties to even; NaN stays NaN.
template <class T>
T from_float(float value);

template <>
inline float from_float<float>(float value) {
    return value;
}

template <>
inline float16 from_float<float16>(float value) {
    const std::uint32_t bits = detail::bits_of(value);
    return {static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | detail::float16_magnitude(bits & 0x7FFFFFFFu))};
}

template <>
inline bfloat16 from_float<bfloat16>(float value) {
    const std::uint32_t bits = detail::bits_of(value);
    return {static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) | detail::bfloat16_magnitude(bits & 0x7FFFFFFFu))};
}

// A type and its name, as a value that a generic lambda can take.
template <class T>
struct DType {
    using type = T;
    std::string_view name;
};

namespace detail {

template <class Visitor, class... Ts>
void visit(std::string_view name, Visitor&& visitor, DType<Ts>... dtypes) {
    const bool found = ((name == dtypes.name && (visitor(dtypes), true)) || ...);
    if (found) return;
    std::string known;
    ((known += known.empty() ? "" : ", ", known += dtypes.name), ...);
    throw std::invalid_argument("unknown dtype '" + std::string(name) + "', known are " + known);
}

}  // namespace detail

// Calls visitor(DType<T>{}) for the floating-point type T of that name; throws std::invalid_argument for any other
// name.
template <class Visitor>
void visit_float(std::string_view name, Visitor&& visitor) {
    detail::visit(name, visitor, DType<float>{"float32"}, DType<float16>{"float16"}, DType<bfloat16>{"bfloat16"});
}

}  // namespace bnb_core
