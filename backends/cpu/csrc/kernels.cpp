// Compiled once for each level. A level with more instructions for int8 alone takes the other kernels from its base.
#include "kernels.h"

#if !defined(BNB_BASE_LEVEL)
#define BNB_BASE_LEVEL BNB_LEVEL
#endif

namespace bnb_core {

#define X(Function, name) Function name;
namespace BNB_LEVEL {
BNB_INT8_KERNELS(X)
const Kernels& kernels();
}  // namespace BNB_LEVEL
namespace BNB_BASE_LEVEL {
BNB_OTHER_KERNELS(X)
}
#undef X

const Kernels& BNB_LEVEL::kernels() {
#define X(Function, name) name,
    static constexpr Kernels table = {BNB_INT8_KERNELS(X)
#undef X
#define X(Function, name) BNB_BASE_LEVEL::name,
                                          BNB_OTHER_KERNELS(X)};
#undef X
    return table;
}

}  // namespace bnb_core
