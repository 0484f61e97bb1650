// The parameters of a step, for all state formats.
#pragma once

#include <cstdint>

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
    float* unorm;              // receives the norm of the update where that has a limit
    std::int64_t first_block;  // its place in the list, where each parameter has a block for each 256 elements
};

// Parameters of one dtype that take one step together. Their blocks are spread over the threads, so that it makes no
// difference whether there are many small parameters or few large ones.
struct OptimizerStep {
    OptimizerRule rule;
    DType dtype;
    OptimizerSettings settings;
    const Parameter* parameters;
    std::int64_t count;
    std::int64_t blocks;  // of all parameters
    int threads;
};

}  // namespace bnb_core
