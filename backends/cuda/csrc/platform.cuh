// What the kernels are written against: CUDA, or in tests without a GPU a block of fibers on the CPU.
#pragma once

#ifdef BNB_FIBERS

#include "tests/fibers/fibers.h"

#else

#include <tuple>

#include "runtime.h"

namespace bnb_core {

// Runs kernel(args...) on the stream; throws with the kernel's name where it cannot be launched.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), std::int64_t blocks, int threads, Stream stream,
            Arguments... args) {
    if (blocks == 0) return;
    std::tuple<Parameters...> values(static_cast<Parameters>(args)...);
    std::apply(
        [&](auto&... value) {
            void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))...};
            check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                                   dim3(threads), pointers, 0, stream),
                  name);
        },
        values);
}

}  // namespace bnb_core

#endif
