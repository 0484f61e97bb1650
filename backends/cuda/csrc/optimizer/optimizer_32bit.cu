#include "batch.cuh"
#include "optimizer_32bit.h"

namespace bnb_core {

namespace {

// A block of a parameter with its moments.
template <class Rule>
struct PlainBlock {
    static constexpr int moments = Rule::moments;

    Values g, p, moment[moments];

    template <bool FULL>
    __device__ __forceinline__ void read(const Batch& batch, const Parameter& parameter, const Place<FULL>& place) {
        Lane<float> found[moments];
        for (int k = 0; k < moments; ++k) found[k] = fetch(moment_of<const float>(parameter, k, moments), place);
        read_both(batch, parameter, place, g, p);
        for (int k = 0; k < moments; ++k) {
            for (int r = 0; r < kRuns; ++r) {
                for (int i = 0; i < kRun; ++i) moment[k][r][i] = found[k].run[r].of[i];
            }
        }
    }

    template <bool FULL>
    __device__ __forceinline__ void write(const Batch& batch, const Parameter& parameter, const Place<FULL>& place) {
        write_parameter(batch, parameter, place, p);
        for (int k = 0; k < moments; ++k) {
            Lane<float> made;
            for (int r = 0; r < kRuns; ++r) {
                for (int i = 0; i < kRun; ++i) made.run[r].of[i] = moment[k][r][i];
            }
            store(moment_of<float>(parameter, k, moments), place, made);
        }
    }
};

// factors: of the step size, one a parameter; null without a limit.
template <class Rule>
__global__ void __launch_bounds__(kThreads, kHeld<Rule>)
    update(const __grid_constant__ Batch batch, const float* factors) {
    const Update<Rule> rule(batch.numbers);
    each_item(batch, [&](std::uint32_t item, int which) {
        const std::int64_t block = item - batch.first[which];
        const float factor = factors == nullptr ? 1.0f : factors[batch.parameters_before + which];
        at_block(batch, which, block * kStateBlock, [&](const auto& place) {
            PlainBlock<Rule> here;
            here.read(batch, batch.parameters[which], place);
            update_block(batch.numbers, rule, rule.lr() * factor, here.g, here.p, here.moment);
            here.write(batch, batch.parameters[which], place);
        });
    });
}

// The sums of squares of kSummed elements: of what is measured, and of the parameter.
template <class Rule>
__global__ void __launch_bounds__(kThreads, kHeld<Rule>) measure(const __grid_constant__ Batch batch, float* sums) {
    constexpr int moments = Rule::moments;
    const Update<Rule> rule(batch.numbers);
    each_item(batch, [&](std::uint32_t item, int which) {
        const Parameter& parameter = batch.parameters[which];
        const std::int64_t begin = static_cast<std::int64_t>(item - batch.first[which]) * kSummed;
        const std::int64_t end = begin + kSummed < parameter.n ? begin + kSummed : parameter.n;
        float change[kRun] = {}, norm[kRun] = {};
        for (std::int64_t block = begin; block < end; block += kStateBlock) {
            at_block(batch, which, block, [&](const auto& place) {
                PlainBlock<Rule> here;
                here.read(batch, parameter, place);
                for (int r = 0; r < kRuns; ++r) {
                    for (int i = 0; i < kRun; ++i) {
                        const float p = here.p[r][i];
                        float one[moments];
                        for (int k = 0; k < moments; ++k) one[k] = here.moment[k][r][i];
                        const float found = rule.measured(batch.numbers, here.g[r][i], p, one);
                        const float measured = place.has(r, i) ? found : 0.0f;
                        change[i] = change[i] + measured * measured;
                        norm[i] = norm[i] + p * p;
                    }
                }
            });
        }
        const float total = sum_of((change[0] + change[1]) + (change[2] + change[3]));
        const float old = sum_of((norm[0] + norm[1]) + (norm[2] + norm[3]));
        if (threadIdx.x % kWarp != 0) return;
        float* const to = sums + 2 * (batch.items_before + item);
        to[0] = total;
        to[1] = old;
    });
}

// The norm of the update of the block's parameter, and what brings it down; 1 for a parameter of norm 0, which could
// never move. param_norm: below 0 for that which was measured.
__global__ void __launch_bounds__(kThreads)
    limit(const __grid_constant__ Batch batch, const float* sums, float max_unorm, float largest, float* factors) {
    const int which = static_cast<int>(blockIdx.x);
    float change = 0.0f, norm = 0.0f;
    for (std::uint32_t item = batch.first[which] + threadIdx.x; item < batch.first[which + 1]; item += kThreads) {
        change = change + sums[2 * (batch.items_before + item)];
        norm = norm + sums[2 * (batch.items_before + item) + 1];
    }
    const float unorm = __fsqrt_rn(sum_of_block(change)), own = __fsqrt_rn(sum_of_block(norm));
    if (threadIdx.x != 0) return;
    if (largest < 0.0f) largest = max_unorm * own;
    const bool limited = unorm > largest && largest > 0.0f;
    factors[batch.parameters_before + which] = limited ? __fdiv_rn(largest, unorm) : 1.0f;
    if (batch.parameters[which].unorm != nullptr) *batch.parameters[which].unorm = unorm;
}

// Where the factors of the parameters stand, once these kernels ran.
template <class Rule>
const float* factors_of(const OptimizerStep& step, const NormLimit& norm) {
    const Cut cut = {sizeof(float), kSummed};
    std::int64_t items = 0;
    each_batch(step, cut, [&](const Batch& batch) {
        launch("optimizer_step_32bit: the norms", measure<Rule>, blocks_for(batch, kHeld<Rule>), kThreads, step.stream,
               batch, norm.scratch);
        items += batch.first[batch.count];
    });
    float* const factors = norm.scratch + 2 * items;
    const double largest = norm.param_norm < 0 ? -1.0 : norm.max_unorm * norm.param_norm;
    each_batch(step, cut, [&](const Batch& batch) {
        launch("optimizer_step_32bit: the limit", limit, batch.count, kThreads, step.stream, batch, norm.scratch,
               static_cast<float>(norm.max_unorm), static_cast<float>(largest), factors);
    });
    return factors;
}

}  // namespace

void optimizer_step_32bit(const OptimizerStep& step, const NormLimit& limit) {
    visit_rule(step.rule, [&](auto type) {
        using Rule = typename decltype(type)::type;
        const float* const factors = limit.max_unorm > 0 ? factors_of<Rule>(step, limit) : nullptr;
        each_batch(step, {sizeof(float), kStateBlock}, [&](const Batch& batch) {
            launch("optimizer_step_32bit", update<Rule>, blocks_for(batch, kHeld<Rule>), kThreads, step.stream, batch,
                   factors);
        });
    });
}

}  // namespace bnb_core
