// What the kernels are written against: CUDA, or in tests without a GPU a block of fibers on the CPU.
#pragma once

#ifdef BNB_FIBERS

#include "tests/fibers/fibers.h"

#else

#include "runtime.h"

namespace bnb_core {

// Runs kernel(args...) on the stream; throws with the kernel's name where it cannot be launched.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), std::int64_t blocks, int threads, Stream stream,
            Arguments... args) {
    if (blocks == 0) return;
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream> > >(static_cast<Parameters>(args)...);
    check(cudaGetLastError(), name);
}

}  // namespace bnb_core

#endif
