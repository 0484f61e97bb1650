// The activations of gemm_4bit as its kernels read them: fp32, in tiles of rows, k by k.
#pragma once

#include "../runtime/parallel.h"
#include "strip.h"
#include "tile.h"

namespace bnb_core::BNB_LEVEL {

// M rows in tiles of at most kTileRows, as equal in height as can be.
struct Tiles {
    std::int64_t M, count;

    BNB_INLINE explicit Tiles(std::int64_t rows) : M(rows), count((rows + kTileRows - 1) / kTileRows) {}

    BNB_INLINE std::int64_t row(std::int64_t tile) const { return tile * (M / count) + std::min(tile, M % count); }
    BNB_INLINE int height(std::int64_t tile) const { return static_cast<int>(row(tile + 1) - row(tile)); }

    // Where the values of a tile for k0 … k0 + depth - 1 stand in the packed memory of M * K floats.
    BNB_INLINE std::int64_t at(std::int64_t k0, std::int64_t depth, std::int64_t tile) const {
        return M * k0 + row(tile) * depth;
    }
};

// Packs A [M, K]: packed[tiles.at(k0, depth, tile)] onwards is [depth][height] for each tile and run of kDepth.
template <class T>
void pack_rows(const T* A, std::int64_t K, const Tiles& tiles, int threads, float* packed) {
    constexpr std::int64_t kLeastElements = 1 << 15;  // worth a thread
    parallel(tiles.count, kLeastElements / (kTileRows * (K + 1)) + 1, threads,
             [&](std::int64_t begin, std::int64_t end) {
                 float row[kDepth];
                 for (std::int64_t tile = begin; tile < end; ++tile) {
                     const int height = tiles.height(tile);
                     for (std::int64_t k0 = 0; k0 < K; k0 += kDepth) {
                         const std::int64_t depth = std::min<std::int64_t>(kDepth, K - k0);
                         float* to = packed + tiles.at(k0, depth, tile);
                         for (int m = 0; m < height; ++m) {
                             const T* from = A + (tiles.row(tile) + m) * K + k0;
                             std::int64_t k = 0;
                             for (; k + F32::size <= depth; k += F32::size) store(row + k, load(from + k));
                             for (; k < depth; ++k) row[k] = to_float(from[k]);
                             for (k = 0; k < depth; ++k) to[k * height + m] = row[k];
                         }
                     }
                 }
             });
}

}  // namespace bnb_core::BNB_LEVEL
