#pragma once

#include "optimizer.h"

namespace bnb_core {

// One step with states of 8-bit codes and one scale for each moment of a parameter: parameter, codes and scales are
// written. map2 as in OptimizerStep8bitBlockwise. scratch: kScratch8bit numbers for each block.
using OptimizerStep8bit = void(const OptimizerStep& step, const Codebook& map1, const Codebook& map2, float* scratch);

constexpr int kScratch8bit = 4;

}  // namespace bnb_core
