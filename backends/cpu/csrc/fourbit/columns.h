// Decoding kColumns rows of a 4-bit weight side by side, transposed: the rows of the weight are columns of a product,
// so a vector holds one k of several rows. The bytes are transposed before they are decoded, which is cheaper by 4
// to 8.
//
// Every level has the same names:
//   kColumns       rows of the weight that are decoded together: two vectors
//   kStep          how many k one step decodes, from kStep / 2 bytes of each row
//   ColumnDecoder  decoder(rows, at, take) decodes the bytes rows[c][at + j], j < kStep / 2, c < kColumns, and calls
//                  take(k, w0, w1) for k = 0 … kStep - 1 in this order, with the values (not scaled) of the first and
//                  the second half of the columns
#pragma once

#include "../simd/simd.h"
#include "native/codebooks.h"

#if defined(__AVX512F__)
#include "columns_avx512.h"
#elif defined(__AVX2__)
#include "columns_avx2.h"
#else
#include "columns_generic.h"
#endif
