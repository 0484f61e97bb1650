#include "optimizer_8bit.h"

#include "coded.h"

namespace bnb_core::BNB_LEVEL {

OptimizerStep8bit optimizer_step_8bit;

namespace {

// What the first pass finds out about a block, and a parameter in sum.
struct Found {
    float touched;  // 0 where skip_zeros leaves it as it is
    float largest[kScratch8bit - 1];
};

BNB_INLINE float larger(float a, float b) { return a > b || a != a ? a : b; }

template <class Rule>
void load_scales(const Parameter& parameter, float* scale) {
    for (int k = 0; k < Rule::moments; ++k) scale[k] = *scale_of(parameter, k, Rule::moments, 1);
}

template <class T, class Rule>
void measure(const Update<Rule>& rule, const Coding& coding, const Parameter& parameter, std::int64_t begin,
             std::int64_t end, Found* blocks) {
    constexpr int moments = Rule::moments;
    const T* g = static_cast<const T*>(parameter.g);
    Blocks<T, Rule>(rule, coding, parameter)
        .run(
            begin, end, 0.0f, [&](std::int64_t, float* scale) { load_scales<Rule>(parameter, scale); }, [](auto...) {},
            [&](const Block<moments>& block, std::int64_t first, std::int64_t last) {
                Found& found = blocks[parameter.first_block + first / kStateBlock];
                found.touched = rule.skip_zeros() && all_zero(g, first, last) ? 0.0f : 1.0f;
                for (int k = 0; k < moments; ++k) found.largest[k] = block.largest[k];
            });
}

template <class T, class Rule>
void update(const Update<Rule>& rule, const Coding& coding, const Parameter& parameter, std::int64_t begin,
            std::int64_t end, const Found& found, float lr) {
    constexpr int moments = Rule::moments;
    T* p = static_cast<T*>(parameter.p);
    Blocks<T, Rule>(rule, coding, parameter)
        .run(
            begin, end, lr, [&](std::int64_t, float* scale) { load_scales<Rule>(parameter, scale); },
            [&](std::int64_t i, F32 v, auto lanes) BNB_LAMBDA_INLINE { store(p + i, v, lanes); },
            [&](const Block<moments>& block, std::int64_t first, std::int64_t last) {
                for (int k = 0; k < moments; ++k) {
                    encode(coding.encoder(k, moments), block.values[k], &found.largest[k], kStateBlock, last - first,
                           moment_of<std::uint8_t>(parameter, k, moments) + first);
                }
            });
}

// Leaves the sum of a parameter's blocks in the place of the first one.
void total(const Parameter& parameter, Found* blocks) {
    if (parameter.n == 0) return;
    Found& sum = blocks[parameter.first_block];
    for (std::int64_t i = 1; i < blocks_of(parameter); ++i) {
        const Found& found = blocks[parameter.first_block + i];
        sum.touched = larger(sum.touched, found.touched);
        for (int k = 0; k < kScratch8bit - 1; ++k) sum.largest[k] = larger(sum.largest[k], found.largest[k]);
    }
}

template <class Rule>
void store_scales(const Update<Rule>&, const Parameter& parameter, const Found* blocks) {
    if (parameter.n == 0 || !(blocks[parameter.first_block].touched > 0)) return;
    for (int k = 0; k < Rule::moments; ++k) {
        *scale_of(parameter, k, Rule::moments, 1) = blocks[parameter.first_block].largest[k];
    }
}

}  // namespace

// The first pass takes the largest magnitudes of the new moments, the second computes them once more: that costs less
// than to keep them, at 4 bytes for each byte of state.
void optimizer_step_8bit(const OptimizerStep& step, const Codebook& map1, const Codebook& map2, float* scratch) {
    static_assert(sizeof(Found) == kScratch8bit * sizeof(float));
    const Coding coding(step, map1, map2);
    Found* const blocks = reinterpret_cast<Found*>(scratch);
    visit_step(step, [&](const auto& rule, auto type) {
        using T = typename decltype(type)::type;
        each_part(step, [&](const Parameter& parameter, std::int64_t begin, std::int64_t end) {
            measure<T>(rule, coding, parameter, begin, end, blocks);
        });
        for (std::int64_t i = 0; i < step.count; ++i) total(step.parameters[i], blocks);
        each_part(step, [&](const Parameter& parameter, std::int64_t begin, std::int64_t end) {
            const Found& found = blocks[parameter.first_block];
            if (found.touched > 0) update<T>(rule, coding, parameter, begin, end, found, step.settings.lr);
        });
        for (std::int64_t i = 0; i < step.count; ++i) store_scales(rule, step.parameters[i], blocks);
    });
}

}  // namespace bnb_core::BNB_LEVEL
