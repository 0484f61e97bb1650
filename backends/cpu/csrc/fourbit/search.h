// Where numbers stand among the boundaries of a 4-bit type.
#pragma once

#include "../simd/simd.h"
#include "native/codebooks.h"

namespace bnb_core::BNB_LEVEL {

#if defined(__AVX2__)

// A binary search: each step's boundaries are picked from a register by the position found so far.
class Boundaries {
  public:
    BNB_INLINE explicit Boundaries(const FourBit& type)
        : half_(f32(type.boundaries[7])),
          first_quarter_(f32(type.boundaries[3])),
          last_quarter_(f32(type.boundaries[11])),
          eighths_(every<4>(type.boundaries + 1)),
          sixteenths_(every<2>(type.boundaries)) {}

    // positions: how many boundaries are less than t, in each lane. The vectors take each step together: a step waits
    // for the one before it, and the processor does not look far enough ahead to find the next vector.
    template <int count>
    BNB_INLINE void below(const F32 (&t)[count], I32* positions) const {
        for (int i = 0; i < count; ++i) {
            const Mask half = t[i] > half_;
            const I32 position = increment(i32(0), half);
            positions[i] = increment(position + position, t[i] > select(half, last_quarter_, first_quarter_));
        }
        for (const Table8& boundaries : {eighths_, sixteenths_}) {
            for (int i = 0; i < count; ++i) {
                const F32 boundary = lookup(boundaries, positions[i]);
                positions[i] = increment(positions[i] + positions[i], t[i] > boundary);
            }
        }
    }

  private:
    template <int step>
    BNB_INLINE static Table8 every(const float* boundaries) {
        float values[8] = {};
        for (int i = 0; i < 16 / step; ++i) values[i] = boundaries[i * step];
        return table8(values);
    }

    F32 half_, first_quarter_, last_quarter_;
    Table8 eighths_, sixteenths_;
};

#else

class Boundaries {
  public:
    BNB_INLINE explicit Boundaries(const FourBit& type) : boundaries_(type.boundaries) {}

    template <int count>
    BNB_INLINE void below(const F32 (&t)[count], I32* positions) const {
        for (int i = 0; i < count; ++i) {
            positions[i] = i32(0);
            for (int k = 0; k < 15; ++k) positions[i] = increment(positions[i], t[i] > f32(boundaries_[k]));
        }
    }

  private:
    const float* boundaries_;
};

#endif

}  // namespace bnb_core::BNB_LEVEL
