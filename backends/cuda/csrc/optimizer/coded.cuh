// Moments as 8-bit codes of a codebook with a scale.
#pragma once

#include "../blockwise/codebook.cuh"
#include "batch.cuh"

namespace bnb_core {

struct Maps {
    Codebook of[2];  // of state 1, and of state 2 if there is one
};

// The codebooks of a rule with `moments` moments, of which the last of several is in state 2.
template <class Table, int moments>
struct Tables {
    Table of[moments > 1 ? 2 : 1];

    __device__ void make(const Maps& maps) {
        for (int m = 0; m < (moments > 1 ? 2 : 1); ++m)
            of[m].make(maps.of[m].values, static_cast<int>(maps.of[m].size));
    }
    __device__ __forceinline__ const Table& of_moment(int k) const { return of[moments > 1 && k == moments - 1]; }
};

// x / scale as correctly rounded as the division itself, in five operations (Markstein 1990): the scale is the same for
// many x, none of which is larger. 0 for a scale that is 0 or NaN.
class Quotient {
  public:
    __device__ __forceinline__ explicit Quotient(float scale) : any_(scale > 0.0f) {
        // Where the reciprocal, or the products, would leave the range of fp32 both are shifted.
        shift_ = scale < 0x1p-60f ? 0x1p64f : scale > 0x1p60f ? 0x1p-64f : 1.0f;
        scale_ = scale * shift_;
        reciprocal_ = __fdiv_rn(1.0f, any_ ? scale_ : 1.0f);
    }
    __device__ __forceinline__ float operator()(float x) const {
        const float shifted = x * shift_, near = shifted * reciprocal_;
        const float t = __fmaf_rn(__fmaf_rn(-near, scale_, shifted), reciprocal_, near);
        return any_ ? t : 0.0f;
    }

  private:
    bool any_;
    float shift_, scale_, reciprocal_;
};

__device__ __forceinline__ void decode(const Decoder& decoder, const Lane<std::uint8_t>& codes, float scale,
                                       Values& values) {
    for (int r = 0; r < kRuns; ++r) {
        for (int i = 0; i < kRun; ++i) values[r][i] = decoder.values[codes.run[r].of[i]] * scale;
    }
}

template <bool FULL>
__device__ __forceinline__ void encode(const Encoder& encoder, const Values& values, float scale,
                                       const Place<FULL>& place, std::uint8_t* codes) {
    const Quotient over(scale);
    Values t;
    for (int r = 0; r < kRuns; ++r) {
        for (int i = 0; i < kRun; ++i) t[r][i] = over(values[r][i]);
    }
    Lane<std::uint8_t> made;
    for (int r = 0; r < kRuns; ++r) encoder.nearest(t[r], made.run[r].of);
    store(codes, place, made);
}

// A block of a parameter with its moments.
template <class Rule>
struct CodedBlock {
    static constexpr int moments = Rule::moments;

    Values g, p, moment[moments];

    // scale(k): of moment k.
    template <bool FULL, class Scale>
    __device__ __forceinline__ void read(const Batch& batch, const Parameter& parameter, const Place<FULL>& place,
                                         const Tables<Decoder, moments>& decoders, Scale&& scale) {
        Lane<std::uint8_t> codes[moments];
        float scales[moments];
        for (int k = 0; k < moments; ++k) {
            codes[k] = fetch(moment_of<const std::uint8_t>(parameter, k, moments), place);
            scales[k] = scale(k);
        }
        read_both(batch, parameter, place, g, p);
        for (int k = 0; k < moments; ++k) decode(decoders.of_moment(k), codes[k], scales[k], moment[k]);
    }

    // Zero moments where there is no element.
    template <bool FULL>
    __device__ __forceinline__ void update(const Batch& batch, const Place<FULL>& place, const Update<Rule>& rule) {
        update_block(batch.numbers, rule, rule.lr(), g, p, moment);
        for (int k = 0; !FULL && k < moments; ++k) {
            for (int r = 0; r < kRuns; ++r) {
                for (int i = 0; i < kRun; ++i) moment[k][r][i] = place.has(r, i) ? moment[k][r][i] : 0.0f;
            }
        }
    }

    // Of this lane.
    __device__ __forceinline__ std::uint32_t largest(int k) const {
        std::uint32_t found = 0;
        for (int r = 0; r < kRuns; ++r) {
            for (int i = 0; i < kRun; ++i) found = larger(found, magnitude(moment[k][r][i]));
        }
        return found;
    }

    // False where skip_zeros leaves the whole block as it is.
    __device__ __forceinline__ bool is_touched(const Batch& batch) const {
        bool any = !batch.numbers.skip_zeros;
        for (int r = 0; r < kRuns; ++r) {
            for (int i = 0; i < kRun; ++i) any = any || g[r][i] != 0.0f;
        }
        return __ballot_sync(kAllLanes, any) != 0;
    }
};

}  // namespace bnb_core
