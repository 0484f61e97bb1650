// The exact int8 product behind every operator that multiplies: activations [rows, K] times the transpose of a weight
// [N, K], which is read as it is stored. The activations are widened to 16 bits first, a block of rows at a time, in
// the order in which the product reads them; multiplying 16 bits and adding pairs to 32 is exact on every CPU, unlike
// the 8-bit instructions of AVX2, which saturate.
#pragma once

#include <cstdint>
#include <cstring>

#include "../runtime/parallel.h"
#include "../simd/simd.h"
#include "scratch.h"

namespace bnb_core::BNB_LEVEL {

constexpr int kTileRows = 6;                      // rows of activations multiplied at once
constexpr int kGroupRows = 8 * kTileRows;         // rows that share what is prepared for some columns
constexpr int kPanel = 64;                        // columns (rows of the weight) that stay in the second cache
constexpr int kNarrowPanel = 16;                  // so few where they are read only once
constexpr std::int64_t kLeastProducts = 1 << 18;  // worth a thread

// Rows of activations in the order in which they are multiplied. They are split evenly into tiles of up to kTileRows. A
// tile holds its rows vector by vector in turn. Where K is no multiple of a vector the last one ends with the row, as
// its counterpart in the weight does, which is read from there without going past it: zeros stand for elements that
// the vector before has already.
struct Widened {
    std::int16_t* data;
    std::int64_t rows, K;

    BNB_INLINE std::int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
    BNB_INLINE std::int64_t first_row(std::int64_t tile) const { return tile * rows / tiles(); }
    BNB_INLINE std::int64_t vectors() const { return K / I16::size; }
    BNB_INLINE int rest() const { return static_cast<int>(K % I16::size); }
    // Elements of a row with the padding.
    BNB_INLINE std::int64_t length() const { return (vectors() + (rest() > 0)) * I16::size; }
    // The memory after the rows.
    BNB_INLINE float* end() const { return reinterpret_cast<float*>(data + rows * length()); }
    BNB_INLINE const std::int16_t* tile(std::int64_t tile) const { return data + first_row(tile) * length(); }
};

// Where one row is written to.
struct WidenedRow {
    std::int16_t* data;
    std::int64_t stride, vectors;
    int rest;

    BNB_INLINE WidenedRow(const Widened& A, std::int64_t row) : vectors(A.vectors()), rest(A.rest()) {
        const std::int64_t tile = ((row + 1) * A.tiles() - 1) / A.rows, first = A.first_row(tile);
        stride = (A.first_row(tile + 1) - first) * I16::size;
        data = A.data + first * A.length() + (row - first) * I16::size;
    }

    // Writes number(i), an I32 of F32::size consecutive elements, and number(i, n) of the first n.
    template <class F>
    BNB_INLINE void write(F&& number) const {
        std::int64_t i = 0;
        std::int16_t* out = data;
        for (std::int64_t v = 0; v < vectors; ++v, i += I16::size, out += stride) {
            store_i16(out, number(i));
            store_i16(out + F32::size, number(i + F32::size));
        }
        if (rest == 0) return;
        store_i16(out, i32(0));
        store_i16(out + F32::size, i32(0));
        if (vectors > 0) out += I16::size - rest;
        for (int done = 0; done < rest; done += F32::size) {
            const int n = rest - done < F32::size ? rest - done : F32::size;
            store_i16(out + done, number(i + done, n), n);
        }
    }

    // Writes 0 to element k.
    BNB_INLINE void clear(std::int64_t k) const {
        const std::int64_t vector = k / I16::size;
        const int lane = static_cast<int>(k % I16::size);
        const int shift = vector == vectors && vectors > 0 ? I16::size - rest : 0;
        data[vector * stride + lane + shift] = 0;
    }
};

// sums [rows of the tiles, kPanel] = the products of tiles [begin, end) and B [columns, K].
void multiply(const Widened& A, std::int64_t begin, std::int64_t end, const std::int8_t* B, int columns,
              std::int32_t* sums);

// Calls finish(row, rows, column, columns, sums), with int32 sums [rows, kPanel], for all parts of A [rows, K] times
// the transpose of B [N, K].
template <class F>
BNB_INLINE void product(const Widened& A, const std::int8_t* B, std::int64_t N, int threads, const F& finish) {
    constexpr std::int64_t kGroupTiles = kGroupRows / kTileRows;
    const std::int64_t panel = A.rows > kTileRows ? kPanel : kNarrowPanel;
    const std::int64_t groups = (A.tiles() + kGroupTiles - 1) / kGroupTiles, panels = (N + panel - 1) / panel;
    if (groups == 0) return;
    const std::int64_t work = A.rows / groups * panel * A.K;
    parallel(panels * groups, kLeastProducts / (work + 1) + 1, threads, [&](std::int64_t begin, std::int64_t end) {
        std::int32_t sums[kGroupRows * kPanel];
        for (; begin < end; ++begin) {
            const std::int64_t column = begin / groups * panel, group = begin % groups;
            const std::int64_t tile = group * kGroupTiles;
            const std::int64_t last = tile + kGroupTiles < A.tiles() ? tile + kGroupTiles : A.tiles();
            const int columns = static_cast<int>(N - column < panel ? N - column : panel);
            const std::int64_t row = A.first_row(tile);
            multiply(A, tile, last, B + column * A.K, columns, sums);
            finish(row, static_cast<int>(A.first_row(last) - row), column, columns, sums);
        }
    });
}

// Elements of codes, for WidenedRow::write.
struct Codes8 {
    const std::int8_t* x;

    BNB_INLINE I32 operator()(std::int64_t i) const { return load_i8(x + i); }
    BNB_INLINE I32 operator()(std::int64_t i, int n) const { return load_i8(x + i, n); }
};

// Widens rows of codes A [A.rows, K].
BNB_INLINE void widen(const std::int8_t* codes, const Widened& A, int threads) {
    parallel(A.rows, kLeastProducts / (8 * A.K + 1) + 1, threads, [&](std::int64_t begin, std::int64_t end) {
        for (; begin < end; ++begin) WidenedRow(A, begin).write(Codes8{codes + begin * A.K});
    });
}

// Calls f(A, row) with memory for widened rows [row, row + A.rows), block by block, until all are done; a row takes
// `extra` bytes more, which stand after all rows.
template <class F>
BNB_INLINE void each_block(std::int64_t rows, std::int64_t K, std::int64_t extra, Scratch scratch, F&& f) {
    if (rows == 0) return;
    const std::uintptr_t start = (reinterpret_cast<std::uintptr_t>(scratch.memory) + 63) / 64 * 64;
    Widened A{reinterpret_cast<std::int16_t*>(start), 1, K};
    const std::int64_t most = (scratch.size - 64) / (A.length() * 2 + extra + 1);
    const std::int64_t blocks = (rows + most - 1) / most;
    for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t row = block * rows / blocks;
        A.rows = (block + 1) * rows / blocks - row;
        f(A, row);
    }
}

}  // namespace bnb_core::BNB_LEVEL
