// Kernels for CPUs are compiled once for each level (instruction set), into the namespace bnb_core::BNB_LEVEL with that
// level's compiler flags. What such a file defines must stand in that namespace, or be BNB_INLINE: an ordinary inline
// function shared with other files may be kept by the linker in its AVX form and then run on a CPU without it.
#pragma once

#if defined(__CUDACC__)
#define BNB_INLINE __host__ __device__ __forceinline__
#define BNB_LAMBDA_INLINE
#elif defined(_MSC_VER)
#define BNB_INLINE __forceinline
#define BNB_LAMBDA_INLINE
#else
#define BNB_INLINE inline __attribute__((always_inline))
#define BNB_LAMBDA_INLINE __attribute__((always_inline))  // behind a lambda's parameters
#endif

// In front of a loop of constant length: unrolls it whole, so that arrays of vectors stay in registers.
#if defined(__clang__)
#define BNB_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define BNB_UNROLL _Pragma("GCC unroll 64")
#else
#define BNB_UNROLL
#endif
