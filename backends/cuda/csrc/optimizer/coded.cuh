// Moments as 8-bit codes of a codebook with a scale.
#pragma once

#include <type_traits>

#include "../blockwise/codebook.cuh"
#include "../blockwise/quotient.cuh"
#include "batch.cuh"

namespace bnb_core {

struct Maps {
    Codebook of[2];  // of state 1, and of state 2 if there is one
};

// The codebooks of a rule with `moments` moments, of which the last of several is in state 2.
template <int moments>
struct Decoders {
    Decoder of[moments > 1 ? 2 : 1];

    __device__ void make(const Maps& maps) {
        for (int m = 0; m < (moments > 1 ? 2 : 1); ++m)
            of[m].make(maps.of[m].values, static_cast<int>(maps.of[m].size));
    }
    __device__ __forceinline__ const Decoder& of_moment(int k) const { return of[moments > 1 && k == moments - 1]; }
};

// State 2 has averages of squares, as a rule with a codebook without negative values.
template <int moments>
struct Encoders {
    Encoder<true> of_state1;
    std::conditional_t<(moments > 1), Encoder<false>, char> of_state2;

    __device__ void make(const Maps& maps) {
        of_state1.make(maps.of[0].values, static_cast<int>(maps.of[0].size));
        if constexpr (moments > 1) of_state2.make(maps.of[1].values, static_cast<int>(maps.of[1].size));
    }
    template <int COUNT>
    __device__ __forceinline__ Coded<COUNT> nearest(int k, const float (&t)[COUNT]) const {
        if constexpr (moments > 1) {
            if (k == moments - 1) return of_state2.nearest(t);
        }
        return of_state1.nearest(t);
    }
};

__device__ __forceinline__ void decode(const Decoder& decoder, const Lane<std::uint8_t>& codes, float scale,
                                       Values& values) {
    for (int r = 0; r < kRuns; ++r) {
        for (int i = 0; i < kRun; ++i) values[r][i] = decoder.values[codes.run[r].of[i]] * scale;
    }
}

// Of moment k.
template <int moments, bool FULL>
__device__ __forceinline__ void encode(const Encoders<moments>& encoders, int k, const Values& values, float scale,
                                       const Place<FULL>& place, std::uint8_t* codes) {
    const Quotient over(scale);
    Values t;
    for (int r = 0; r < kRuns; ++r) {
        for (int i = 0; i < kRun; ++i) t[r][i] = over(values[r][i]);
    }
    codes += place.at;
    for (int r = 0; r < kRuns; ++r) {
        const auto made = encoders.nearest(k, t[r]);
        if (FULL) {
            made.write(codes + r * place.kNext);
        } else {
            for (int i = 0; i < kRun; ++i) {
                if (place.has(r, i)) codes[r * place.kNext + i] = made[i];
            }
        }
    }
}

// A block of a parameter with its moments.
template <class Rule>
struct CodedBlock {
    static constexpr int moments = Rule::moments;

    Values g, p, moment[moments];

    // scale(k): of moment k.
    template <bool FULL, class Scale>
    __device__ __forceinline__ void read(const Batch& batch, const Parameter& parameter, const Place<FULL>& place,
                                         const Decoders<moments>& decoders, Scale&& scale) {
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
