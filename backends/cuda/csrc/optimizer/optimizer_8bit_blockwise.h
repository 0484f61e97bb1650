#pragma once

#include "optimizer.h"

namespace bnb_core {

// One step with states of 8-bit codes and a scale for each block of kStateBlock: parameters, codes and scales are
// written. map2 serves state 2, and has no values for a rule without one.
void optimizer_step_8bit_blockwise(const OptimizerStep& step, const Codebook& map1, const Codebook& map2);

}  // namespace bnb_core
