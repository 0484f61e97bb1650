#include "coded.cuh"
#include "optimizer_8bit.h"

namespace bnb_core {

namespace {

constexpr std::int64_t kMeasured = 4096;  // elements that a warp measures

// What is found out about a parameter, from zeros on.
struct Found {
    int largest[3];   // magnitudes of the new moments
    int touched;      // 0 where skip_zeros leaves all as it is
    float before[3];  // the old scales
    int unused;
};
static_assert(sizeof(Found) == kScratch8bit * sizeof(std::int32_t));

template <class Rule>
__global__ void __launch_bounds__(kThreads, kHeld<Rule>)
    measure(const __grid_constant__ Batch batch, const __grid_constant__ Maps maps, Found* parameters) {
    constexpr int moments = Rule::moments;
    __shared__ Decoders<moments> decoders;
    decoders.make(maps);
    const Update<Rule> rule(batch.numbers);
    const bool leads = threadIdx.x % kWarp == 0;
    each_item(batch, [&](std::uint32_t item, int which) {
        const Parameter& parameter = batch.parameters[which];
        Found& found = parameters[batch.parameters_before + which];
        const std::int64_t begin = static_cast<std::int64_t>(item - batch.first[which]) * kMeasured;
        const std::int64_t end = begin + kMeasured < parameter.n ? begin + kMeasured : parameter.n;
        std::uint32_t largest[moments] = {};
        bool touched = false;
        for (std::int64_t block = begin; block < end; block += kStateBlock) {
            at_block(batch, which, block, [&](const auto& place) {
                CodedBlock<Rule> here;
                here.read(batch, parameter, place, decoders,
                          [&](int k) { return *scales_of(parameter, k, moments, 1); });
                here.update(batch, place, rule);
                for (int k = 0; k < moments; ++k) largest[k] = larger(largest[k], here.largest(k));
                touched = here.is_touched(batch) || touched;
            });
        }
        for (int k = 0; k < moments; ++k) {
            const std::uint32_t all = largest_of(largest[k]);
            if (leads) atomicMax(&found.largest[k], static_cast<int>(all));
            if (leads && begin == 0) found.before[k] = *scales_of(parameter, k, moments, 1);
        }
        if (leads && touched) atomicMax(&found.touched, 1);
    });
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, kHeld<Rule>)
    update(const __grid_constant__ Batch batch, const __grid_constant__ Maps maps, const Found* parameters) {
    constexpr int moments = Rule::moments;
    __shared__ Decoders<moments> decoders;
    __shared__ Encoders<moments> encoders;
    decoders.make(maps);
    encoders.make(maps);
    const Update<Rule> rule(batch.numbers);
    each_item(batch, [&](std::uint32_t item, int which) {
        const Parameter& parameter = batch.parameters[which];
        const Found& found = parameters[batch.parameters_before + which];
        if (found.touched == 0) return;
        const std::int64_t begin = static_cast<std::int64_t>(item - batch.first[which]) * kStateBlock;
        at_block(batch, which, begin, [&](const auto& place) {
            CodedBlock<Rule> here;
            here.read(batch, parameter, place, decoders, [&](int k) { return found.before[k]; });
            here.update(batch, place, rule);
            write_parameter(batch, parameter, place, here.p);
#pragma unroll
            for (int k = 0; k < moments; ++k) {
                const float scale = absmax_of(static_cast<std::uint32_t>(found.largest[k]));
                if (begin == 0 && threadIdx.x % kWarp == 0) *scales_of(parameter, k, moments, 1) = scale;
                encode(encoders, k, here.moment[k], scale, place, moment_of<std::uint8_t>(parameter, k, moments));
            }
        });
    });
}

}  // namespace

// The first launch takes the largest magnitudes of the new moments, the second computes them once more: that costs less
// than to keep them, at 4 bytes for each byte of state.
void optimizer_step_8bit(const OptimizerStep& step, const Codebook& map1, const Codebook& map2, std::int32_t* scratch) {
    Found* const found = reinterpret_cast<Found*>(scratch);
    const Maps maps = {{map1, map2}};
    visit_rule(step.rule, [&](auto type) {
        using Rule = typename decltype(type)::type;
        each_batch(step, {1, kMeasured}, [&](const Batch& batch) {
            launch("optimizer_step_8bit: the scales", measure<Rule>, blocks_for(batch, kHeld<Rule>), kThreads,
                   step.stream, batch, maps, found);
        });
        each_batch(step, {1, kStateBlock}, [&](const Batch& batch) {
            launch("optimizer_step_8bit", update<Rule>, blocks_for(batch, kHeld<Rule>), kThreads, step.stream, batch,
                   maps, found);
        });
    });
}

}  // namespace bnb_core
