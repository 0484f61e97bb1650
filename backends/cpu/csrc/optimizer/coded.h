// Moments as 8-bit codes of a codebook with a scale, a block at a time.
#pragma once

#include <cstring>

#include "../blockwise/codebook.h"
#include "update.h"

namespace bnb_core::BNB_LEVEL {

// The codebooks of both states, ready for use. They serve all parameters of a step.
class Coding {
  public:
    Coding(const OptimizerStep& step, const Codebook& map1, const Codebook& map2) {
        make_decoder(tables_[0], map1.values, map1.size);
        make_encoder(encoders_[0], map1.values, map1.size, step.blocks * kStateBlock);
        if (map2.values == nullptr) return;
        make_decoder(tables_[1], map2.values, map2.size);
        make_encoder(encoders_[1], map2.values, map2.size, step.blocks * kStateBlock);
    }

    // Of moment k, for a rule with `moments` of them: the last of several is state 2.
    const float* table(int k, int moments) const { return tables_[moments > 1 && k == moments - 1]; }
    const Encoder& encoder(int k, int moments) const { return encoders_[moments > 1 && k == moments - 1]; }

  private:
    float tables_[2][256];
    Encoder encoders_[2];
};

// The scales of moment k, where each moment has `count` of them.
BNB_INLINE float* scale_of(const Parameter& parameter, int k, int moments, std::int64_t count) {
    return moments > 1 && k == moments - 1 ? parameter.scale2 : parameter.scale1 + k * count;
}

// The moments of a block: decoded ones, to be multiplied by their scales, then the new ones.
template <int moments>
struct Block {
    alignas(64) float values[moments][kStateBlock];
    float largest[moments];  // magnitudes of the new ones; NaN where one is not finite
};

// The blocks of a part of a parameter, one after the other, in three passes each: decode, update, and what the caller
// does then. In one pass a number would go through a chain of 150 cycles, of which a CPU has too few under way at a
// time.
template <class T, class Rule>
class Blocks {
  public:
    static constexpr int moments = Rule::moments;

    Blocks(const Update<Rule>& rule, const Coding& coding, const Parameter& parameter)
        : rule_(rule), g_(static_cast<const T*>(parameter.g)), p_(static_cast<T*>(parameter.p)) {
        for (int k = 0; k < moments; ++k) {
            table_[k] = coding.table(k, moments);
            codes_[k] = moment_of<std::uint8_t>(parameter, k, moments);
        }
    }

    // For each block: scales(first element, float[moments]) gives the scales of its moments, write(i, F32, lanes) takes
    // the new parameter, finish(block, first element, last) has the new moments.
    template <class Scales, class Write, class Finish>
    BNB_INLINE void run(std::int64_t begin, std::int64_t end, float step_size, Scales&& scales, Write&& write,
                        Finish&& finish) {
        Block<moments> block;
        for (; begin < end; begin += kStateBlock) {
            const std::int64_t stop = end - begin > kStateBlock ? begin + kStateBlock : end;
            float scale[moments];
            scales(begin, scale);
            for (int k = 0; k < moments; ++k) decode(table_[k], codes_[k] + begin, stop - begin, block.values[k]);
            update(begin, stop, step_size, scale, block, write);
            finish(block, begin, stop);
        }
    }

  private:
    static void decode(const float* table, const std::uint8_t* codes, std::int64_t count, float* values) {
        std::int64_t i = 0;
        for (; i + F32::size <= count; i += F32::size) store(values + i, gather(table, codes + i));
        if (i == count) return;
        const int rest = static_cast<int>(count - i);
        store(values + i, gather(table, load_u8(codes + i, rest)));
    }

    template <class Write>
    BNB_INLINE void update(std::int64_t begin, std::int64_t stop, float step_size, const float* scale,
                           Block<moments>& block, Write&& write) const {
        const Update<Rule> rule = rule_;
        const F32 size = f32(step_size);
        I32 largest[moments];
        F32 scales[moments];
        for (int k = 0; k < moments; ++k) {
            largest[k] = i32(0);
            scales[k] = f32(scale[k]);
        }
        each_vector(begin, stop, [&](std::int64_t i, auto lanes) BNB_LAMBDA_INLINE {
            F32 moment[moments];
            for (int k = 0; k < moments; ++k) moment[k] = load(block.values[k] + (i - begin)) * scales[k];
            write(i, rule.step(load(g_ + i, lanes), load(p_ + i, lanes), moment, size), lanes);
            for (int k = 0; k < moments; ++k) {
                store(block.values[k] + (i - begin), moment[k]);
                largest[k] = max(largest[k], bits(abs(only(lanes, moment[k]))));
            }
        });
        for (int k = 0; k < moments; ++k) {
            const auto found = static_cast<std::uint32_t>(reduce_max(largest[k]));
            block.largest[k] = float_of(found < kInfinityBits ? found : kNaNBits);
        }
    }

    const Update<Rule>& rule_;
    const T* g_;
    T* p_;
    const float* table_[moments];
    const std::uint8_t* codes_[moments];
};

// True where a step with `skip_zeros` has nothing to do.
template <class T>
BNB_INLINE bool all_zero(const T* g, std::int64_t begin, std::int64_t end) {
    Mask zero = f32(0) == f32(0);
    each_vector(begin, end, [&](std::int64_t i, auto lanes) { zero = zero & (load(g + i, lanes) == f32(0)); });
    return !any(!zero);
}

}  // namespace bnb_core::BNB_LEVEL
