// Compiled once for each level.
#include "kernels.h"

namespace bnb_core::BNB_LEVEL {

#define X(Function, name) Function name;
BNB_KERNELS(X)
#undef X

const Kernels& kernels() {
#define X(Function, name) name,
    static constexpr Kernels table = {BNB_KERNELS(X)};
#undef X
    return table;
}

}  // namespace bnb_core::BNB_LEVEL
