// What every state format does around a rule: gradient scaling, weight decay, elements to skip, and the list of
// parameters as one range of work.
#pragma once

#include "../runtime/parallel.h"
#include "rules.h"

namespace bnb_core::BNB_LEVEL {

template <class Rule>
class Update {
  public:
    static constexpr int moments = Rule::moments;

    Update(const Rule& rule, const OptimizerSettings& s)
        : rule_(rule),
          gnorm_scale_(constant(s.gnorm_scale)),
          weight_decay_(constant(s.weight_decay)),
          shrink_(f32(1.0f - s.lr * static_cast<float>(s.weight_decay))),
          decay_gradient_(!Rule::decoupled && s.weight_decay != 0),
          skip_zeros_(s.skip_zeros) {}

    bool skip_zeros() const { return skip_zeros_; }

    // The new parameter; `moment` becomes the new moments.
    BNB_INLINE F32 step(F32 g, F32 p, F32* moment, F32 step_size) const {
        F32 old[moments];
        for (int k = 0; k < moments; ++k) old[k] = moment[k];
        const F32 update = rule_(gradient(g, p), moment).update;
        const F32 moved = (Rule::decoupled ? p * shrink_ : p) - step_size * update;
        if (!skip_zeros_) return moved;
        const Mask untouched = g == f32(0);
        for (int k = 0; k < moments; ++k) moment[k] = select(untouched, old[k], moment[k]);
        return select(untouched, p, moved);
    }

    // What a limit to the norm is about.
    BNB_INLINE F32 measured(F32 g, F32 p, F32* moment) const {
        const F32 change = rule_(gradient(g, p), moment).measured;
        return skip_zeros_ ? select(g == f32(0), f32(0), change) : change;
    }

  private:
    BNB_INLINE F32 gradient(F32 g, F32 p) const {
        g = g * gnorm_scale_;
        return decay_gradient_ ? g + weight_decay_ * p : g;
    }

    Rule rule_;
    F32 gnorm_scale_, weight_decay_, shrink_;
    bool decay_gradient_, skip_zeros_;
};

// Moment k of a parameter, for a rule with `moments` of them.
template <class State>
BNB_INLINE State* moment_of(const Parameter& parameter, int k, int moments) {
    if (moments > 1 && k == moments - 1) return static_cast<State*>(parameter.state2);
    return static_cast<State*>(parameter.state1) + k * parameter.n;
}

BNB_INLINE std::int64_t blocks_of(const Parameter& parameter) {
    return parameter.n / kStateBlock + (parameter.n % kStateBlock > 0);
}

// Calls f(parameter, begin, end) for the parameters, or parts of them in whole blocks, that the blocks [begin, end) of
// the list are made of.
template <class F>
BNB_INLINE void each_part_of(const OptimizerStep& step, std::int64_t begin, std::int64_t end, F&& f) {
    std::int64_t low = 0, high = step.count;  // the last parameter that starts at or before `begin`
    while (high - low > 1) {
        const std::int64_t middle = low + (high - low) / 2;
        (step.parameters[middle].first_block <= begin ? low : high) = middle;
    }
    for (; begin < end; ++low) {
        const Parameter& parameter = step.parameters[low];
        const std::int64_t first = begin - parameter.first_block, blocks = blocks_of(parameter);
        const std::int64_t last = end - parameter.first_block < blocks ? end - parameter.first_block : blocks;
        if (first < last) f(parameter, first * kStateBlock, last < blocks ? last * kStateBlock : parameter.n);
        begin = parameter.first_block + last;
    }
}

constexpr std::int64_t kLeastBlocks = 1 << 7;  // worth a thread

// Calls f(parameter, begin, end) for all parameters or parts of them, on the threads of the step.
template <class F>
BNB_INLINE void each_part(const OptimizerStep& step, F&& f) {
    parallel(step.blocks, kLeastBlocks, step.threads,
             [&](std::int64_t first, std::int64_t last) { each_part_of(step, first, last, f); });
}

// All lanes of a vector, where a number stands for the first ones.
struct All {};

template <class T>
BNB_INLINE F32 load(const T* p, All) {
    return load(p);
}
template <class T>
BNB_INLINE void store(T* p, F32 v, All) {
    store(p, v);
}

// `v` with zeros in the other lanes: what a rule makes of them may be NaN.
BNB_INLINE F32 only(All, F32 v) { return v; }
BNB_INLINE F32 only(int lanes, F32 v) {
    float part[F32::size];
    store(part, v);
    return load(part, lanes);
}

// Calls f(i, lanes) for the vectors of [begin, end); the last may have fewer lanes.
template <class F>
BNB_INLINE void each_vector(std::int64_t begin, std::int64_t end, F&& f) {
    for (; begin + F32::size <= end; begin += F32::size) f(begin, All{});
    if (begin < end) f(begin, static_cast<int>(end - begin));
}

// Calls f(Update of the step's rule, Type<T> of its dtype).
template <class F>
BNB_INLINE void visit_step(const OptimizerStep& step, F&& f) {
    visit_rule(step.rule, step.settings, [&](const auto& rule) {
        const Update update(rule, step.settings);
        visit(step.dtype, [&](auto type) { f(update, type); });
    });
}

}  // namespace bnb_core::BNB_LEVEL
