#pragma once

#include "optimizer.h"

namespace bnb_core {

// One step with states of 8-bit codes and one scale for each moment of a parameter: parameters, codes and scales are
// written. map2 as in optimizer_step_8bit_blockwise. scratch: kScratch8bit zeros for each parameter.
void optimizer_step_8bit(const OptimizerStep& step, const Codebook& map1, const Codebook& map2, std::int32_t* scratch);

constexpr int kScratch8bit = 8;

}  // namespace bnb_core
