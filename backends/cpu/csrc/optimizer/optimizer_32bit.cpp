#include "optimizer_32bit.h"

#include <cmath>

#include "update.h"

namespace bnb_core::BNB_LEVEL {

OptimizerStep32bit optimizer_step_32bit;

namespace {

template <class Rule, class Lanes>
BNB_INLINE void load_moments(const Parameter& parameter, std::int64_t i, Lanes lanes, F32* moment) {
    for (int k = 0; k < Rule::moments; ++k) {
        moment[k] = load(moment_of<float>(parameter, k, Rule::moments) + i, lanes);
    }
}

template <class T, class Rule>
void update(const Update<Rule>& rule, const Parameter& parameter, std::int64_t begin, std::int64_t end,
            float step_size) {
    const T* g = static_cast<const T*>(parameter.g);
    T* p = static_cast<T*>(parameter.p);
    const F32 size = f32(step_size);
    each_vector(begin, end, [&](std::int64_t i, auto lanes) {
        F32 moment[Rule::moments];
        load_moments<Rule>(parameter, i, lanes, moment);
        store(p + i, rule.step(load(g + i, lanes), load(p + i, lanes), moment, size), lanes);
        for (int k = 0; k < Rule::moments; ++k) {
            store(moment_of<float>(parameter, k, Rule::moments) + i, moment[k], lanes);
        }
    });
}

// The sums of squares of one block: of what is measured, and of the parameter.
template <class T, class Rule>
void measure(const Update<Rule>& rule, const Parameter& parameter, std::int64_t begin, std::int64_t end, double* sums) {
    const T* g = static_cast<const T*>(parameter.g);
    const T* p = static_cast<const T*>(parameter.p);
    F32 change = f32(0), norm = f32(0);
    each_vector(begin, end, [&](std::int64_t i, auto lanes) {
        F32 moment[Rule::moments];
        load_moments<Rule>(parameter, i, lanes, moment);
        const F32 old = load(p + i, lanes);
        const F32 measured = only(lanes, rule.measured(load(g + i, lanes), old, moment));
        change = change + measured * measured;
        norm = norm + old * old;
    });
    sums[0] = reduce_add(change);
    sums[1] = reduce_add(norm);
}

// The step size of a parameter from the sums of its blocks, added in their order.
float limited(const Parameter& parameter, const NormLimit& limit, float lr) {
    double change = 0, norm = 0;
    const double* sums = limit.sums + 2 * parameter.first_block;
    for (std::int64_t i = 0, blocks = blocks_of(parameter); i < blocks; ++i) {
        change += sums[2 * i];
        norm += sums[2 * i + 1];
    }
    const float unorm = std::sqrt(static_cast<float>(change));
    const float largest = limit.param_norm < 0
                              ? static_cast<float>(limit.max_unorm) * std::sqrt(static_cast<float>(norm))
                              : static_cast<float>(limit.max_unorm * limit.param_norm);
    if (parameter.unorm != nullptr) *parameter.unorm = unorm;
    return unorm > largest && largest > 0 ? lr * (largest / unorm) : lr;
}

}  // namespace

void optimizer_step_32bit(const OptimizerStep& step, const NormLimit& limit) {
    const bool is_limited = limit.max_unorm > 0;
    visit_step(step, [&](const auto& rule, auto type) {
        using T = typename decltype(type)::type;
        if (is_limited) {
            each_part(step, [&](const Parameter& parameter, std::int64_t begin, std::int64_t end) {
                for (; begin < end; begin += kStateBlock) {
                    const std::int64_t stop = end - begin > kStateBlock ? begin + kStateBlock : end;
                    const std::int64_t block = parameter.first_block + begin / kStateBlock;
                    measure<T>(rule, parameter, begin, stop, limit.sums + 2 * block);
                }
            });
            for (std::int64_t i = 0; i < step.count; ++i) {
                limit.step_sizes[i] = limited(step.parameters[i], limit, step.settings.lr);
            }
        }
        each_part(step, [&](const Parameter& parameter, std::int64_t begin, std::int64_t end) {
            const float size = is_limited ? limit.step_sizes[&parameter - step.parameters] : step.settings.lr;
            update<T>(rule, parameter, begin, end, size);
        });
    });
}

}  // namespace bnb_core::BNB_LEVEL
