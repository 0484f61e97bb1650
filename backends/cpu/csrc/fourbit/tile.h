// The product of a few packed rows with a panel: the innermost kernel of gemm_4bit.
#pragma once

#include "columns.h"

namespace bnb_core::BNB_LEVEL {

// Rows of a tile: two accumulators each, as many as leave registers for two vectors of the panel and one of A.
#if defined(__AVX512F__) || defined(BNB_NEON)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif

// a * b + c, rounded once where the level has an instruction for it.
BNB_INLINE F32 multiply_add(F32 a, F32 b, F32 c) {
#if defined(__FMA__) || defined(BNB_NEON)
    return fma(a, b, c);
#else
    return a * b + c;
#endif
}

// tile[m][column] = sum over k < depth of a[k][m] * panel[k][column], in the order of k.
using TileProduct = void(const float* a, const float* panel, std::int64_t depth, float* tile);

namespace {

template <int rows>
void tile_product(const float* a, const float* panel, std::int64_t depth, float* tile) {
    F32 sums[rows][2];
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) sums[m][0] = sums[m][1] = f32(0.0f);
    for (std::int64_t k = 0; k < depth; ++k) {
        const F32 w0 = load(panel + k * kColumns), w1 = load(panel + k * kColumns + F32::size);
#pragma GCC unroll 16
        for (int m = 0; m < rows; ++m) {
            const F32 x = f32(a[k * rows + m]);
            sums[m][0] = multiply_add(x, w0, sums[m][0]);
            sums[m][1] = multiply_add(x, w1, sums[m][1]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
        store(tile + m * kColumns, sums[m][0]);
        store(tile + m * kColumns + F32::size, sums[m][1]);
    }
}

template <int rows = kTileRows>
BNB_INLINE TileProduct* tile_product_of(int height) {
    if constexpr (rows > 1) {
        if (height < rows) return tile_product_of<rows - 1>(height);
    }
    return tile_product<rows>;
}

}  // namespace
}  // namespace bnb_core::BNB_LEVEL
