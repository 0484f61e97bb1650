#pragma once

#include "optimizer.h"

namespace bnb_core {

// One step with states of 8-bit codes and a scale for each block of 256: parameter, codes and scales are written. map2
// serves state 2, and has no values for a rule without one.
using OptimizerStep8bitBlockwise = void(const OptimizerStep& step, const Codebook& map1, const Codebook& map2);

}  // namespace bnb_core
