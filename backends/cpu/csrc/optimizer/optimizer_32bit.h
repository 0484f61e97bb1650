#pragma once

#include "optimizer.h"

namespace bnb_core {

// A limit to the norm of each parameter's update.
struct NormLimit {
    double max_unorm;   // none where it is not above 0
    double param_norm;  // of every parameter; below 0: taken here
    double* sums;       // scratch for two numbers a block; unused where there is no limit
    float* step_sizes;  // scratch for one number a parameter, likewise
};

// One step with fp32 state: parameter, states and, where there is a limit, `unorm` are written.
using OptimizerStep32bit = void(const OptimizerStep& step, const NormLimit& limit);

}  // namespace bnb_core
