// gemm_4bit for a few rows: the weights are multiplied where they were decoded, in registers.
#pragma once

#include "packed_rows.h"

namespace bnb_core::BNB_LEVEL {

constexpr int kFewRows = 5;

constexpr std::int64_t kAhead = 256;  // bytes of a row, between asking for them and decoding

// Whether this can be done: each step is whole, and has one scale for 16 k.
BNB_INLINE bool few_rows(std::int64_t M, const Weight4bit& weight) {
    return M <= kFewRows && aligned(weight) && weight.K % kStep == 0;
}

// sums[m][column] = the products of `rows` packed rows with a strip.
template <int rows>
void few_rows_product(const float* packed, const Strip& strip, const ColumnDecoder& decoder, const Weight4bit& weight,
                      float* sums) {
    const std::uint8_t* bytes[kColumns];
    strip.bytes(bytes);
    F32 total[rows][2];
    for (int m = 0; m < rows; ++m) total[m][0] = total[m][1] = f32(0.0f);
    for (std::int64_t k0 = 0; k0 < weight.K; k0 += kDepth) {
        const std::int64_t depth = std::min<std::int64_t>(kDepth, weight.K - k0);
        alignas(64) float scales[kDepth / 16 * kColumns];
        strip.scales(k0, depth, scales);
        strip.fetch_scales(k0, kColumns);
        F32 part[rows][2];
        for (int m = 0; m < rows; ++m) part[m][0] = part[m][1] = f32(0.0f);
        for (std::int64_t step = 0; step < depth; step += kStep) {
            const float* first = scales + (step >> weight.blocksize_log2) * kColumns;
            const float* second = scales + ((step + 16) >> weight.blocksize_log2) * kColumns;
            const float* a = packed + (k0 + step) * rows;
            // A line is four steps long: a quarter of the rows in each, and behind their end those of the next strip.
            std::int64_t ahead = ((k0 + step) >> 1) + kAhead;
            if (ahead >= weight.K / 2) ahead += (kColumns - 1) * weight.K / 2;
            const std::uint8_t* const* quarter = bytes + step / kStep % 4 * (kColumns / 4);
            for (int c = 0; c < kColumns / 4; ++c) prefetch(quarter[c] + ahead);
            decoder(bytes, (k0 + step) >> 1, [&](int k, F32 w0, F32 w1) BNB_LAMBDA_INLINE {
                const float* scale = k < 16 ? first : second;
                w0 = w0 * load(scale);
                w1 = w1 * load(scale + F32::size);
                for (int m = 0; m < rows; ++m) {
                    const F32 x = f32(a[k * rows + m]);
                    part[m][0] = multiply_add(x, w0, part[m][0]);
                    part[m][1] = multiply_add(x, w1, part[m][1]);
                }
            });
        }
        for (int m = 0; m < rows; ++m) {
            total[m][0] = total[m][0] + part[m][0];
            total[m][1] = total[m][1] + part[m][1];
        }
    }
    for (int m = 0; m < rows; ++m) {
        store(sums + m * kColumns, total[m][0]);
        store(sums + m * kColumns + F32::size, total[m][1]);
    }
}

}  // namespace bnb_core::BNB_LEVEL
