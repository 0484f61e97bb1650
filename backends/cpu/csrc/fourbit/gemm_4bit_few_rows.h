// gemm_4bit for a few rows: the weights are multiplied where they were decoded, in registers, row by row as they are
// stored.
#pragma once

#include "row_decoder.h"
#include "strip.h"
#include "tile.h"

namespace bnb_core::BNB_LEVEL {

constexpr int kFewRows = 5;

constexpr std::int64_t kAhead = 1024;  // bytes of the weight, between asking for them and decoding

// Whether this can be done: runs are whole, and within a row each block begins with 16 codes.
BNB_INLINE bool few_rows(std::int64_t M, const Weight4bit& weight) {
    return M <= kFewRows && aligned(weight) && weight.K % kRun == 0;
}

// Packs A [M, K] in the order of decoding: packed[run][m].
template <class T>
void pack_runs(const T* A, std::int64_t M, std::int64_t K, float* packed) {
    int element[kRun];
    for (int i = 0; i < kRun; ++i) element[i] = RowDecoder::element(i / F32::size, i % F32::size);
    for (std::int64_t k = 0; k < K; k += kRun) {
        for (std::int64_t m = 0; m < M; ++m, packed += kRun) {
            float run[kRun];
            for (int i = 0; i < kRun; i += F32::size) store(run + i, load(A + m * K + k + i));
            for (int i = 0; i < kRun; ++i) packed[i] = run[element[i]];
        }
    }
}

// totals[m] += the products of `rows` packed rows with k0 ... k1 - 1 of row n of the weight, lane by lane.
template <int rows>
BNB_INLINE void add_products(const float* packed, const RowDecoder& decoder, const Weight4bit& weight, std::int64_t n,
                             std::int64_t k0, std::int64_t k1, F32* totals) {
    const std::int64_t first = n * weight.K;
    const std::uint8_t* p = weight.packed + (first + k0) / 2;
    const bool one_scale = weight.blocksize_log2 >= 6;
    static_assert(kRun == 1 << 6);
    F32 total[rows];
    for (int m = 0; m < rows; ++m) total[m] = totals[m];
    packed += k0 * rows;
    for (std::int64_t k = first + k0; k < first + k1; k += kRun, p += kRun / 2, packed += rows * kRun) {
        prefetch(p + kAhead);
        F32 part[rows][2];
        for (int m = 0; m < rows; ++m) part[m][0] = part[m][1] = f32(0.0f);
        const auto add = [&](int i, F32 w) BNB_LAMBDA_INLINE {
            for (int m = 0; m < rows; ++m) {
                part[m][i % 2] = multiply_add(w, load(packed + m * kRun + i * F32::size), part[m][i % 2]);
            }
        };
        if (one_scale) {
            decoder(p, add);
            const F32 scale = f32(weight.scales[k >> weight.blocksize_log2]);
            for (int m = 0; m < rows; ++m) total[m] = multiply_add(part[m][0] + part[m][1], scale, total[m]);
        } else {
            float scales[kRun / 16];
            for (int i = 0; i < kRun / 16; ++i) scales[i] = weight.scales[(k + 16 * i) >> weight.blocksize_log2];
            decoder(p, [&](int i, F32 w) BNB_LAMBDA_INLINE { add(i, w * RowDecoder::scale(scales, i)); });
            for (int m = 0; m < rows; ++m) total[m] = total[m] + (part[m][0] + part[m][1]);
        }
    }
    for (int m = 0; m < rows; ++m) totals[m] = total[m];
}

// sums[m * kColumns + c] = the products of `rows` packed rows with row n0 + c of the weight, for `columns` of them.
template <int rows>
BNB_INLINE void few_rows_product(const float* packed, const RowDecoder& decoder, const Weight4bit& weight,
                                 std::int64_t n0, int columns, float* sums) {
    // So long that the packed rows stay in the first-level cache while those of the weight pass by.
    constexpr std::int64_t kPart = 4096 / rows / kRun * kRun;
    F32 totals[kColumns][rows];
    for (int c = 0; c < columns; ++c) {
        for (int m = 0; m < rows; ++m) totals[c][m] = f32(0.0f);
    }
    for (std::int64_t k = 0; k < weight.K; k += kPart) {
        const std::int64_t end = std::min(k + kPart, weight.K);
        for (int c = 0; c < columns; ++c) add_products<rows>(packed, decoder, weight, n0 + c, k, end, totals[c]);
    }
    for (int c = 0; c < columns; ++c) {
        for (int m = 0; m < rows; ++m) sums[m * kColumns + c] = reduce_add(totals[c][m]);
    }
}

}  // namespace bnb_core::BNB_LEVEL
