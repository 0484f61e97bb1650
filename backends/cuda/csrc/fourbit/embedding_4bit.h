#pragma once

#include <cstdint>

#include "../stream.h"
#include "native/fourbit.h"

namespace bnb_core {

// out[i] = row indices[i] of the 4-bit table, each element its code's value times the scale of its block, an fp32
// product rounded once to dtype; NaN for an index that is no row.
void embedding_4bit(Indices indices, const Weight4bit& table, DType dtype, void* out, Stream stream);

}  // namespace bnb_core
