// What the optimizer steps of all backends are called with.
#pragma once

#include <cstdint>

namespace bnb_core {

// LAMB is Adam and LARS is momentum, with a limit to the norm of the update.
enum class OptimizerRule { adam, ademamix, momentum, lion, rmsprop, adagrad };

struct OptimizerSettings {
    float step, lr;
    double beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale;
    bool skip_zeros;
};

// Elements of a parameter that share a scale, where each moment has one for every block.
constexpr std::int64_t kStateBlock = 256;

// 1 to 256 values; none where values is null.
struct Codebook {
    const float* values;
    std::int64_t size;
};

}  // namespace bnb_core
