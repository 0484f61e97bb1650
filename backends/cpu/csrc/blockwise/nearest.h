// The methods of codebook.h: each finds the codes of the codebook's values nearest to a run of numbers from -1 to 1.
//
// prepare(i, t) takes the numbers i ... i + F32::size - 1 of the run, and finish(n, codes) finds the codes of the first
// n (whole groups). What one hands to the other stands in memory: as one long chain of operations a number would have
// to wait for the chain, of which a CPU holds few at a time (Zen 3: 160 vector registers for 30 results of 60 cycles
// each).
#pragma once

#include "../simd/simd.h"
#include "codebook.h"

namespace bnb_core::BNB_LEVEL {

constexpr int kRun = 256;              // numbers
constexpr int kGroup = 4 * F32::size;  // numbers
constexpr int kBuffer = kRun + F32::size;

// Bisection.
class Search {
  public:
    BNB_INLINE explicit Search(const Encoder& encoder) : encoder_(encoder) {}

    BNB_INLINE void prepare(int i, F32 t) { store(t_ + i, t); }

    BNB_INLINE void finish(int n, std::uint8_t* codes) const {
        for (int i = 0; i < n; i += F32::size) {
            const F32 t = load(t_ + i);
            I32 position = i32(0);
            for (std::int32_t step = encoder_.first_step; step > 0; step >>= 1) {
                const F32 boundary = gather(encoder_.boundaries + (step - 1), position);
                position = position + (to_i32(t > boundary) & i32(step));
            }
            store_byte(codes + i, encoder_.direct ? position : gather(encoder_.codes, position));
        }
    }

  private:
    const Encoder& encoder_;
    alignas(64) float t_[kBuffer];
};

// A bucket holds a position in its upper bits, and below it what makes the bits of a number beyond the bucket's
// boundary carry into the position. The bits of negative numbers are taken inverted, so that they too ascend.
class Buckets {
  public:
    BNB_INLINE explicit Buckets(const Encoder& encoder) : encoder_(encoder) {}

    BNB_INLINE void prepare(int i, F32 t) {
        const I32 inverted = to_i32(i32(0) > bits(t));
        const I32 magnitude = bits(max(abs(t), f32(encoder_.least)));
        const I32 bucket = shift_right(magnitude, encoder_.shift) - i32(encoder_.first);
        store_i32(index_ + i, bucket + (inverted & i32(encoder_.negative)));
        store_i32(rest_ + i, (magnitude ^ inverted) & i32((1 << encoder_.shift) - 1));
    }

    BNB_INLINE void finish(int n, std::uint8_t* codes) const {
        const auto code = [&](int i) BNB_LAMBDA_INLINE {
            const I32 position = shift_right(gather(encoder_.bucket, index_ + i) + load_i32(rest_ + i), encoder_.shift);
            return encoder_.direct ? position : gather(encoder_.codes, position);
        };
        for (int i = 0; i < n; i += kGroup) {
            store_bytes(codes + i, code(i), code(i + F32::size), code(i + 2 * F32::size), code(i + 3 * F32::size));
        }
    }

  private:
    const Encoder& encoder_;
    alignas(64) std::int32_t index_[kBuffer], rest_[kBuffer];
};

// For the dynamic maps. Class 0 is the zone of 0, classes 1 to 7 are the decades, class 8 is the zone of 1. It is
// guessed from the bits of a magnitude, which are nearly its logarithm, as the right one or the one below, and put
// right by the end of that class. Within a class the position is linear; it begins where that of the class before ends,
// and there are twice as many cells, so that the constant doubles. In units of 2^-16 it is off by a few where
// boundaries are rounded: numbers that close to a boundary are searched for. The magnitude of a negative number is
// raised by one bit, since on a boundary it belongs to the larger magnitude.
template <bool is_signed>
class Decades {
  public:
    static constexpr std::int32_t kNear = 4;            // units, in the last decade
    static constexpr std::int32_t kSpare = !is_signed;  // the position of 0

    BNB_INLINE explicit Decades(const Encoder& encoder)
        : encoder_(encoder),
          ends_(table8(encoder.ends)),
          scale_(table8(encoder.scale)),
          class_scale_(f32(encoder.class_scale)),
          class_offset_(f32(encoder.class_offset)),
          offset_(bits(f32(encoder.offset))),
          limit_(bits(f32(kLimit))),
          least_(bits(f32(encoder.least))) {}

    BNB_INLINE void prepare(int i, F32 t) {
        const I32 magnitude = max(is_signed ? bits(abs(t)) - to_i32(i32(0) > bits(t)) : bits(t), least_);
        store(t_ + i, t);
        store(magnitude_ + i, from_bits(magnitude));
        store_i32(class_ + i, class_of(from_bits(magnitude)));
    }

    BNB_INLINE void finish(int n, std::uint8_t* codes) const {
        for (int i = 0; i < n; i += kGroup) {
            I32 distance = i32(0xFFFF);
            const auto code = [&](int at) BNB_LAMBDA_INLINE {
                const I32 units = position(load(magnitude_ + at), load_i32(class_ + at));
                distance = min(distance, units & i32(0xFFFF));
                const I32 steps = shift_right<16>(units);
                if constexpr (!is_signed) return steps - i32(1);
                const I32 negative = to_i32(i32(0) > bits(load(t_ + at)));
                return (steps ^ negative) + (i32(127) - negative);
            };
            store_bytes(codes + i, code(i), code(i + F32::size), code(i + 2 * F32::size), code(i + 3 * F32::size));
            for (std::uint32_t near = mask_bits(i32(2 * kNear) > distance); near != 0; near &= near - 1) {
                int lane = 0;
                while ((near >> lane & 1u) == 0) ++lane;
                for (int at = lane; at < kGroup; at += F32::size) codes[i + at] = nearest(encoder_, t_[i + at]);
            }
        }
    }

    BNB_INLINE I32 guess(F32 magnitude) const {
        return bits(fma(to_f32(bits(magnitude)), class_scale_, class_offset_));
    }

    // Right in its lower bits.
    BNB_INLINE I32 class_of(F32 magnitude) const {
        const I32 below = guess(magnitude);
        return below - to_i32(bits(magnitude) > bits(lookup(ends_, below)));
    }

    // kSpare positions and kNear units above the distance from 0.
    BNB_INLINE I32 position(F32 magnitude, I32 found) const {
        const I32 doublings = shift_left<23>(found);
        const F32 units = fma(magnitude, lookup(scale_, found), from_bits(offset_ + doublings));
        return truncate(min(units, from_bits(limit_ + doublings)));
    }

  private:
    static constexpr float kLimit = (is_signed ? 65536.0f : 131072.0f) * (1.0f - 0x1p-9f);  // of class 0

    const Encoder& encoder_;
    Table8 ends_, scale_;
    F32 class_scale_, class_offset_;
    I32 offset_, limit_, least_;
    alignas(64) float t_[kBuffer], magnitude_[kBuffer];
    alignas(64) std::int32_t class_[kBuffer];
};

}  // namespace bnb_core::BNB_LEVEL
