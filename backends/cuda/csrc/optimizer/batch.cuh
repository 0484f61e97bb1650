// The parameters of a step, as the arguments of kernels: nothing is copied to the device for them, and a graph can
// capture the launch.
#pragma once

#include <cmath>

#include "../items.cuh"
#include "../warp.cuh"
#include "optimizer.h"
#include "rules.cuh"

namespace bnb_core {

constexpr int kBatch = 56;  // as many as the 4 KB of a kernel's arguments hold

// Blocks that a multiprocessor holds, so that all moments of a rule stay in registers.
template <class Rule>
constexpr int kHeld = Rule::moments > 2 ? 2 : 3;

// Parameters that one launch works on, cut into items of a number of elements, of which each warp does one at a time.
struct Batch {
    Numbers numbers;
    DType dtype;
    int count;
    std::int64_t parameters_before, items_before;  // of the same step, in other batches
    std::uint64_t wide;                            // a bit for each: whether all that belongs to it is aligned
    std::uint32_t first[kBatch + 1];               // item of each, then the number of all
    Parameter parameters[kBatch];
};
static_assert(sizeof(Batch) + 96 <= 4096, "other arguments want room too");

// The parameter of an item, where `k` was that of an earlier one.
__device__ __forceinline__ int parameter_of(const Batch& batch, std::uint32_t item, int k) {
    while (batch.first[k + 1] <= item) ++k;
    return k;
}

// Calls f(item, its parameter's number) with all lanes of a warp, for all items that are the warp's.
template <class F>
__device__ __forceinline__ void each_item(const Batch& batch, F&& f) {
    constexpr std::uint32_t kWarps = kThreads / kWarp;
    int k = 0;
    for (std::uint32_t item = blockIdx.x * kWarps + threadIdx.x / kWarp; item < batch.first[batch.count];
         item += gridDim.x * kWarps) {
        k = parameter_of(batch, item, k);
        f(item, k);
    }
}

// Moment k of a parameter, for a rule with `moments` of them: the last of several is state 2.
template <class State>
__device__ __forceinline__ State* moment_of(const Parameter& parameter, int k, int moments) {
    if (moments > 1 && k == moments - 1) return static_cast<State*>(parameter.state2);
    return static_cast<State*>(parameter.state1) + k * parameter.n;
}

// The scales of moment k, where each moment has `count` of them.
__device__ __forceinline__ float* scales_of(const Parameter& parameter, int k, int moments, std::int64_t count) {
    return moments > 1 && k == moments - 1 ? parameter.scale2 : parameter.scale1 + k * count;
}

// -- a block of kStateBlock elements, by the lanes of a warp ----------------------------------------------------------

constexpr int kRun = 4, kRuns = 2;  // elements side by side, so that a warp reads whole lines of fp32, and such runs
static_assert(kRun * kRuns * kWarp == kStateBlock);

// Where the elements of a lane are: `at`, and in further runs kRun * kWarp later each. FULL: all lanes have all of
// them, aligned; a warp finds that out once, so that its reads are under way together.
template <bool FULL>
struct Place {
    std::int64_t at;
    int left;  // elements from there on

    static constexpr int kNext = kRun * kWarp;
    __device__ __forceinline__ bool has(int r, int i) const { return FULL || r * kNext + i < left; }
};

// Calls f(Place) for the block of a parameter that starts at element `begin`.
template <class F>
__device__ __forceinline__ void at_block(const Batch& batch, int which, std::int64_t begin, F&& f) {
    const int first = threadIdx.x % kWarp * kRun;
    const std::int64_t left = batch.parameters[which].n - begin;
    if ((batch.wide >> which & 1) != 0 && left >= kStateBlock) {
        f(Place<true>{begin + first, kStateBlock});
    } else {
        f(Place<false>{begin + first, static_cast<int>(left < kStateBlock ? left : kStateBlock) - first});
    }
}

template <class T>
struct Lane {
    Items<T, kRun> run[kRuns];
};
using Values = float[kRuns][kRun];

// Elements as they are, zeros after the last.
template <class T, bool FULL>
__device__ __forceinline__ Lane<T> fetch(const T* from, const Place<FULL>& place) {
    Lane<T> lane;
    from += place.at;
    for (int r = 0; r < kRuns; ++r) {
        if (FULL) {
            lane.run[r] = *reinterpret_cast<const Items<T, kRun>*>(from + r * place.kNext);
        } else {
            for (int i = 0; i < kRun; ++i) lane.run[r].of[i] = place.has(r, i) ? from[r * place.kNext + i] : T{};
        }
    }
    return lane;
}

template <class T, bool FULL>
__device__ __forceinline__ void store(T* to, const Place<FULL>& place, const Lane<T>& lane) {
    to += place.at;
    for (int r = 0; r < kRuns; ++r) {
        if (FULL) {
            *reinterpret_cast<Items<T, kRun>*>(to + r * place.kNext) = lane.run[r];
        } else {
            for (int i = 0; i < kRun; ++i) {
                if (place.has(r, i)) to[r * place.kNext + i] = lane.run[r].of[i];
            }
        }
    }
}

// Gradients and parameters, both under way at the same time.
template <bool FULL>
__device__ __forceinline__ void read_both(const Batch& batch, const Parameter& parameter, const Place<FULL>& place,
                                          Values& g, Values& p) {
    visit(batch.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const Lane<T> gs = fetch(static_cast<const T*>(parameter.g), place);
        const Lane<T> ps = fetch(static_cast<const T*>(parameter.p), place);
        for (int r = 0; r < kRuns; ++r) {
            for (int i = 0; i < kRun; ++i) {
                g[r][i] = to_float(gs.run[r].of[i]);
                p[r][i] = to_float(ps.run[r].of[i]);
            }
        }
    });
}

// Rounded once to their dtype.
template <bool FULL>
__device__ __forceinline__ void write_parameter(const Batch& batch, const Parameter& parameter,
                                                const Place<FULL>& place, const Values& p) {
    visit(batch.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        Lane<T> made;
        for (int r = 0; r < kRuns; ++r) {
            for (int i = 0; i < kRun; ++i) made.run[r].of[i] = convert<T>(p[r][i]);
        }
        store(static_cast<T*>(parameter.p), place, made);
    });
}

// Parameters and moments after the step.
template <bool SKIP, class Rule>
__device__ __forceinline__ void update_elements(const Numbers& numbers, const Update<Rule>& rule, float step_size,
                                                const Values& g, Values& p, Values (&moment)[Rule::moments]) {
    for (int r = 0; r < kRuns; ++r) {
        for (int i = 0; i < kRun; ++i) {
            float one[Rule::moments];
            for (int k = 0; k < Rule::moments; ++k) one[k] = moment[k][r][i];
            p[r][i] = rule.template step<SKIP>(numbers, g[r][i], p[r][i], one, step_size);
            for (int k = 0; k < Rule::moments; ++k) moment[k][r][i] = one[k];
        }
    }
}

template <class Rule>
__device__ __forceinline__ void update_block(const Numbers& numbers, const Update<Rule>& rule, float step_size,
                                             const Values& g, Values& p, Values (&moment)[Rule::moments]) {
    if (numbers.skip_zeros) {
        update_elements<true>(numbers, rule, step_size, g, p, moment);
    } else {
        update_elements<false>(numbers, rule, step_size, g, p, moment);
    }
}

// -- the host ---------------------------------------------------------------------------------------------------------

inline Numbers numbers_of(const OptimizerStep& step) {
    const OptimizerSettings& s = step.settings;
    const auto fp32 = [](double x) { return static_cast<float>(x); };
    const auto log = [](double beta) { return static_cast<float>(beta > 0 ? std::log(beta) : -HUGE_VAL); };
    Numbers n = {};
    n.beta1 = fp32(s.beta1), n.rest1 = fp32(1 - s.beta1), n.log1 = log(s.beta1);
    n.beta2 = fp32(s.beta2), n.rest2 = fp32(1 - s.beta2), n.log2 = log(s.beta2);
    n.beta3 = fp32(s.beta3), n.rest3 = fp32(1 - s.beta3);
    n.alpha = fp32(s.alpha), n.eps = fp32(s.eps);
    n.weight_decay = fp32(s.weight_decay), n.gnorm_scale = fp32(s.gnorm_scale);
    n.step = s.step, n.lr = s.lr;
    n.step_at = step.step, n.lr_at = step.lr;
    n.skip_zeros = s.skip_zeros;
    return n;
}

// Whether accesses of 16 bytes are allowed. The second moment in state 1 begins after n elements of `state_size` bytes.
inline bool is_wide(const Parameter& parameter, OptimizerRule rule, std::int64_t state_size) {
    return aligned(parameter.g, parameter.p, parameter.state1, parameter.state2) &&
           (rule != OptimizerRule::ademamix || parameter.n * state_size % 16 == 0);
}

// The size of an element of state, and of items. All parameters count, also those without elements.
struct Cut {
    std::int64_t state_size, item;
};

// Calls launch(batch) for the parameters of a step, as many at a time as fit.
template <class F>
void each_batch(const OptimizerStep& step, Cut cut, F&& launch) {
    Batch batch = {};
    batch.numbers = numbers_of(step);
    batch.dtype = step.dtype;
    for (std::int64_t i = 0; i < step.count;) {
        batch.parameters_before = i;
        batch.count = 0;
        batch.wide = 0;
        for (; i < step.count && batch.count < kBatch; ++i, ++batch.count) {
            const Parameter& parameter = step.parameters[i];
            const std::int64_t items = (parameter.n + cut.item - 1) / cut.item;
            batch.parameters[batch.count] = parameter;
            batch.wide |= static_cast<std::uint64_t>(is_wide(parameter, step.rule, cut.state_size)) << batch.count;
            batch.first[batch.count + 1] = batch.first[batch.count] + static_cast<std::uint32_t>(items);
        }
        launch(batch);
        batch.items_before += batch.first[batch.count];
    }
}

// Blocks for the items of a batch; `each`: how many a multiprocessor holds.
inline std::int64_t blocks_for(const Batch& batch, int each) {
    constexpr std::int64_t kWarps = kThreads / kWarp;
    return resident((batch.first[batch.count] + kWarps - 1) / kWarps, each);
}

}  // namespace bnb_core
