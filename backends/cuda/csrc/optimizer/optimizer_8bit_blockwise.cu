#include "coded.cuh"
#include "optimizer_8bit_blockwise.h"

namespace bnb_core {

namespace {

template <class Rule>
__global__ void __launch_bounds__(kThreads, kHeld<Rule>)
    update(const __grid_constant__ Batch batch, const __grid_constant__ Maps maps) {
    constexpr int moments = Rule::moments;
    __shared__ Decoders<moments> decoders;
    __shared__ Encoders<moments> encoders;
    decoders.make(maps);
    encoders.make(maps);
    const Update<Rule> rule(batch.numbers);
    each_item(batch, [&](std::uint32_t item, int which) {
        const Parameter& parameter = batch.parameters[which];
        const std::int64_t block = item - batch.first[which], blocks = batch.first[which + 1] - batch.first[which];
        at_block(batch, which, block * kStateBlock, [&](const auto& place) {
            CodedBlock<Rule> here;
            here.read(batch, parameter, place, decoders,
                      [&](int k) { return scales_of(parameter, k, moments, blocks)[block]; });
            const bool touched = here.is_touched(batch);
            here.update(batch, place, rule);
            write_parameter(batch, parameter, place, here.p);
            if (!touched) return;  // to code it again could change codes and scale
#pragma unroll
            for (int k = 0; k < moments; ++k) {
                const float scale = absmax_of(largest_of(here.largest(k)));
                if (threadIdx.x % kWarp == 0) scales_of(parameter, k, moments, blocks)[block] = scale;
                encode(encoders, k, here.moment[k], scale, place, moment_of<std::uint8_t>(parameter, k, moments));
            }
        });
    });
}

}  // namespace

void optimizer_step_8bit_blockwise(const OptimizerStep& step, const Codebook& map1, const Codebook& map2) {
    visit_rule(step.rule, [&](auto type) {
        using Rule = typename decltype(type)::type;
        each_batch(step, {1, kStateBlock}, [&](const Batch& batch) {
            launch("optimizer_step_8bit_blockwise", update<Rule>, blocks_for(batch, kHeld<Rule>), kThreads, step.stream,
                   batch, Maps{{map1, map2}});
        });
    });
}

}  // namespace bnb_core
