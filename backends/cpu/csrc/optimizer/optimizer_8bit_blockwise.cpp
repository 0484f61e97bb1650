#include "optimizer_8bit_blockwise.h"

#include "coded.h"

namespace bnb_core::BNB_LEVEL {

OptimizerStep8bitBlockwise optimizer_step_8bit_blockwise;

namespace {

template <class T, class Rule>
void update(const Update<Rule>& rule, const Coding& coding, const Parameter& parameter, std::int64_t begin,
            std::int64_t end, float lr) {
    constexpr int moments = Rule::moments;
    const std::int64_t count = blocks_of(parameter);
    const T* g = static_cast<const T*>(parameter.g);
    T* p = static_cast<T*>(parameter.p);
    const auto scale_at = [&](std::int64_t first, int k) {
        return scale_of(parameter, k, moments, count) + first / kStateBlock;
    };
    Blocks<T, Rule>(rule, coding, parameter)
        .run(
            begin, end, lr,
            [&](std::int64_t first, float* scale) {
                for (int k = 0; k < moments; ++k) scale[k] = *scale_at(first, k);
            },
            [&](std::int64_t i, F32 v, auto lanes) BNB_LAMBDA_INLINE { store(p + i, v, lanes); },
            [&](const Block<moments>& block, std::int64_t first, std::int64_t last) {
                if (rule.skip_zeros() && all_zero(g, first, last)) return;
                for (int k = 0; k < moments; ++k) {
                    *scale_at(first, k) = block.largest[k];
                    encode(coding.encoder(k, moments), block.values[k], &block.largest[k], kStateBlock, last - first,
                           moment_of<std::uint8_t>(parameter, k, moments) + first);
                }
            });
}

}  // namespace

void optimizer_step_8bit_blockwise(const OptimizerStep& step, const Codebook& map1, const Codebook& map2) {
    const Coding coding(step, map1, map2);
    visit_step(step, [&](const auto& rule, auto type) {
        using T = typename decltype(type)::type;
        each_part(step, [&](const Parameter& parameter, std::int64_t begin, std::int64_t end) {
            update<T>(rule, coding, parameter, begin, end, step.settings.lr);
        });
    });
}

}  // namespace bnb_core::BNB_LEVEL
