// Many numbers divided by the same.
#pragma once

#include "../platform.cuh"

namespace bnb_core {

// x / scale as correctly rounded as the division itself, in five operations (Markstein 1990): the scale is the same for
// many x, none of which is larger. For a scale that is 0 or NaN it is 0 of finite x, and NaN of others.
class Quotient {
  public:
    __device__ __forceinline__ explicit Quotient(float scale) {
        // Where the reciprocal, or the products, would leave the range of fp32 both are shifted.
        shift_ = scale < 0x1p-60f ? 0x1p64f : scale > 0x1p60f ? 0x1p-64f : 1.0f;
        scale_ = scale * shift_;
        reciprocal_ = __fdiv_rn(1.0f, scale_);
        if (!(scale > 0.0f)) scale_ = shift_ = reciprocal_ = 0.0f;
    }
    __device__ __forceinline__ float operator()(float x) const {
        const float shifted = x * shift_, near = shifted * reciprocal_;
        return __fmaf_rn(__fmaf_rn(-near, scale_, shifted), reciprocal_, near);
    }

  private:
    float shift_, scale_, reciprocal_;
};

}  // namespace bnb_core
