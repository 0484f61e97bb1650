#pragma once

#include "optimizer.h"

namespace bnb_core {

constexpr std::int64_t kSummed = 4096;  // elements that a warp sums up

// A limit to the norm of each parameter's update.
struct NormLimit {
    double max_unorm;   // none where it is not above 0
    double param_norm;  // of every parameter; below 0: taken here
    float* scratch;  // for two numbers for each kSummed begun of a parameter, then one a parameter; unused if no limit
};

// One step with fp32 state: parameters, states and, where there is a limit, `unorm` are written.
void optimizer_step_32bit(const OptimizerStep& step, const NormLimit& limit);

}  // namespace bnb_core
