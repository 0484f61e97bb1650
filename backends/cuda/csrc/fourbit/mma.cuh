// A product of tensor cores: what a warp computes at a time, its parts distributed to the lanes.
#pragma once

#include <type_traits>

#include "../platform.cuh"
#include "native/dtype.h"

namespace bnb_core {

#ifdef BNB_FIBERS

using fibers::mma;

#else

// sums[16, 8] += a[16, 16] b[16, 8] of a 16-bit T, for lane 4g + j: a has rows g and g + 8 in turn, k 2j, 2j + 1 first
// and then k 2j + 8, 2j + 9; b column g with these k; sums columns 2j, 2j + 1 of row g, then of row g + 8.
template <class T>
__device__ __forceinline__ void mma(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    if constexpr (std::is_same_v<T, float16>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
#else
    __trap();  // code for an earlier GPU alone was built, and a later one runs it
#endif
}

#endif

}  // namespace bnb_core
