#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace bnb_core {

// The n elements in ascending order, NaN last, as bits of fp32; `sorted` and `spare` have room for n.
using SortValues = void(const void* A, DType dtype, std::int64_t n, std::uint32_t* sorted, std::uint32_t* spare);

}  // namespace bnb_core
