// Splitting work over the threads of the OpenMP runtime that torch has loaded.
#pragma once

#include <cstdint>
#include <type_traits>

#include "native/inline.h"

namespace bnb_core {

// Calls run(context, begin, end) for consecutive parts of [0, count), on up to `threads` threads of at least `least`
// items each. Serial within another parallel region, in a process made by fork(), and where no runtime was found.
// The parts depend on the number of threads: what `run` computes for an item must not.
void parallel_parts(std::int64_t count, std::int64_t least, int threads,
                    void (*run)(void* context, std::int64_t begin, std::int64_t end), void* context);

// parallel_parts for a callable, which must not throw.
template <class F>
BNB_INLINE void parallel(std::int64_t count, std::int64_t least, int threads, F&& f) {
    if (threads <= 1 || count <= least) {
        if (count > 0) f(std::int64_t{0}, count);
        return;
    }
    parallel_parts(
        count, least, threads,
        [](void* context, std::int64_t begin, std::int64_t end) {
            (*static_cast<std::remove_reference_t<F>*>(context))(begin, end);
        },
        &f);
}

// The number of threads that torch.get_num_threads() says, for callers that do not know it.
int max_threads();

// How the threads are run: "GOMP_parallel", or "serial" with the reason.
const char* threading();

}  // namespace bnb_core
