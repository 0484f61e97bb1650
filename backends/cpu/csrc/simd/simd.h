// The vectors of the level that is being compiled, in the namespace bnb_core::BNB_LEVEL. Kernels are written once over
// them. Every level has the same names:
//
//   F32, I32           vectors of F32::size numbers (4, 8 or 16); Mask: the result of comparing two of them
//   f32(x), i32(x)     all lanes x
//   load(p), store(p, v)              F32::size numbers of float, float16 or bfloat16, converted to or from fp32
//   load(p, n), store(p, v, n)        the first n lanes alone, 0 <= n <= size; the others are 0, or not written
//   load_i32, store_i32, store_i16    32-bit lanes to and from memory (store_i16 keeps the low 16 bits)
//   load_u8, load_i8, store_byte      bytes to and from 32-bit lanes (store_byte keeps the low 8 bits)
//   store_bytes(p, a, b, c, d)        four vectors as bytes; lanes below 0 become 0, those from 256 to 32767 become 255
//   store_i8(p, a, b, c, d)           4 * size lanes of -128...127 as bytes
//   + - * / and abs, min, max, sqrt, round_to_even, fma (one rounding), and comparisons of F32
//   + - * & | ^ ==, >, min, max, shift_left<n>, shift_right<n> (zeros come in) of I32; comparisons are signed;
//   shift_right(I32, n)               by a number that is not a constant
//   increment(I32, mask)              one more in the lanes of the mask
//   bits(F32), from_bits(I32), to_i32(F32) (rounds to even), truncate(F32), to_f32(I32)
//   select(mask, a, b), & | ! of masks, any(mask), mask_bits(mask) (lane i in bit i), to_i32(mask) (-1 or 0)
//   reduce_max(I32), reduce_add(I32), reduce_add(F32) (in a fixed order)
//   I16                               twice F32::size 16-bit numbers: i16(x), &, max, reduce_max, and load_i16 of int16
//                                     or of bytes that are widened (with n the first n lanes, the others 0)
//   dot(sum, a, b)     the products of I16 lanes added to the lanes of an I32, in whatever order: their total is exact
//   Table8, lookup(table, I32)        by the low three bits of each lane
//   Table16, lookup(table, I32)       by the low four bits of each lane
//   gather(table, I32), gather(table, p) with the numbers at p as indices: bytes into floats, int32 into int32
//
// min(a, b) and max(a, b) are `a < b ? a : b` and `a > b ? a : b`, as in SSE: b where either is NaN.
#pragma once

#include <cstdint>

#include "native/dtype.h"

#if defined(__AVX512F__)
#include "avx512.h"
#elif defined(__AVX2__)
#include "avx2.h"
#elif defined(BNB_NEON)
#include "neon.h"
#else
#include "scalar.h"
#endif

namespace bnb_core::BNB_LEVEL {

// The first n lanes, read through memory that is large enough.
template <class T>
BNB_INLINE F32 load_part(const T* p, int n) {
    T part[F32::size] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return load(part);
}

template <class T>
BNB_INLINE void store_part(T* p, F32 v, int n) {
    T part[F32::size];
    store(part, v);
    for (int i = 0; i < n; ++i) p[i] = part[i];
}

}  // namespace bnb_core::BNB_LEVEL
