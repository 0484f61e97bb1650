// What the steps of all state formats are called with.
#pragma once

#include <cstdint>

#include "../stream.h"
#include "native/dtype.h"
#include "native/optimizer.h"

namespace bnb_core {

// A parameter of n elements, contiguous, with all that belongs to it. State 1 of ademamix holds two moments, one after
// the other, and so do its scales; a rule with one moment has no state 2.
struct Parameter {
    std::int64_t n;
    const void* g;
    void* p;
    void* state1;
    void* state2;
    float* scale1;
    float* scale2;
    float* unorm;  // receives the norm of the update where that has a limit; may be null
};

// Parameters of one dtype that take one step together.
struct OptimizerStep {
    OptimizerRule rule;
    DType dtype;
    OptimizerSettings settings;
    const float* step;  // on the device, in the place of the settings' numbers; null where those count
    const float* lr;
    const Parameter* parameters;
    std::int64_t count;
    Stream stream;
};

}  // namespace bnb_core
