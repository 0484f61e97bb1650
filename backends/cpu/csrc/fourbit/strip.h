// A strip: kColumns rows of a 4-bit weight, as columns of a product. Behind the last row of the weight, the last one
// again: its results are not stored.
#pragma once

#include <algorithm>
#include <cstring>

#include "columns.h"
#include "gemm_4bit.h"

namespace bnb_core::BNB_LEVEL {

// A strip is decoded for this many k at a time: a panel of at most 16 KB, half of the first-level cache. It is also how
// many products are added up one by one, before such sums are: the shorter, the smaller the error.
constexpr int kDepth = std::min(256, 4096 / kColumns);
static_assert(kDepth % kStep == 0 && kStep % 16 == 0);

// Whether the rows of a weight begin with a block, hence with a whole byte.
BNB_INLINE bool aligned(const Weight4bit& weight) { return weight.K % (std::int64_t{1} << weight.blocksize_log2) == 0; }

// Asks for the cache line of an address that is soon to be read; it may lie outside of all memory.
BNB_INLINE void prefetch(const void* p) {
#if defined(__GNUC__)
    __builtin_prefetch(p);
#else
    static_cast<void>(p);
#endif
}

class Strip {
  public:
    Strip(const Weight4bit& weight, std::int64_t n0) : weight_(weight) {
        for (int c = 0; c < kColumns; ++c) first_[c] = std::min(n0 + c, weight.N - 1) * weight.K;
    }

    // The first byte of each row; K must be even.
    BNB_INLINE void bytes(const std::uint8_t** rows) const {
        for (int c = 0; c < kColumns; ++c) rows[c] = weight_.packed + (first_[c] >> 1);
    }

    // Asks for the bytes and scales of k0 … k0 + depth - 1. The rows are far apart, so hardware does not guess them.
    BNB_INLINE void fetch(std::int64_t k0, std::int64_t depth) const {
        for (int c = 0; c < kColumns; ++c) {
            const std::int64_t block = (first_[c] + k0) >> weight_.blocksize_log2;
            if (weight_.scales.codes == nullptr) {
                prefetch(weight_.scales.absmax + block);
            } else {
                prefetch(weight_.scales.codes + block);
            }
            const std::uint8_t* row = weight_.packed + ((first_[c] + k0) >> 1);
            for (std::int64_t byte = 0; byte < depth / 2; byte += 64) prefetch(row + byte);
        }
    }

    // The scales of an aligned weight for k0 … k0 + depth - 1: a row of `scales` for each block, at most kDepth / 16.
    // k0 begins a block, or no block ends before k0 + depth.
    BNB_INLINE void scales(std::int64_t k0, std::int64_t depth, float* scales) const {
        const std::int64_t count = ((depth - 1) >> weight_.blocksize_log2) + 1;
        std::int64_t block[kColumns];
        for (int c = 0; c < kColumns; ++c) block[c] = (first_[c] + k0) >> weight_.blocksize_log2;
        if (weight_.scales.codes == nullptr) {
            const float* absmax = weight_.scales.absmax;
            for (std::int64_t b = 0; b < count; ++b, scales += kColumns) {
                for (int c = 0; c < kColumns; ++c) scales[c] = absmax[block[c] + b];
            }
        } else {
            for (std::int64_t b = 0; b < count; ++b, scales += kColumns) {
                for (int c = 0; c < kColumns; ++c) scales[c] = weight_.scales[block[c] + b];
            }
        }
    }

    // panel[k][column] = the weights of k0 … k0 + depth - 1; depth <= kDepth, and `panel` has room for whole steps.
    void decode(const ColumnDecoder& decoder, std::int64_t k0, std::int64_t depth, float* panel) const {
        if (aligned(weight_)) {
            alignas(64) float table[kDepth / 16 * kColumns];
            scales(k0, depth, table);
            decode_steps(decoder, k0, depth, [&](std::int64_t step) {
                const float* first = table + (step >> weight_.blocksize_log2) * kColumns;
                const float* second = table + ((step + 16) >> weight_.blocksize_log2) * kColumns;
                float* to = panel + step * kColumns;
                return [=](int k, F32 w0, F32 w1) BNB_LAMBDA_INLINE {
                    const float* scale = k < 16 ? first : second;
                    store(to + k * kColumns, w0 * load(scale));
                    store(to + k * kColumns + F32::size, w1 * load(scale + F32::size));
                };
            });
        } else {
            decode_steps(decoder, k0, depth, [&](std::int64_t step) {
                float* to = panel + step * kColumns;
                return [=](int k, F32 w0, F32 w1) BNB_LAMBDA_INLINE {
                    store(to + k * kColumns, w0);
                    store(to + k * kColumns + F32::size, w1);
                };
            });
            scale_runs(k0, depth, panel);
        }
    }

  private:
    template <class Taker>
    BNB_INLINE void decode_steps(const ColumnDecoder& decoder, std::int64_t k0, std::int64_t depth,
                                 Taker&& taker) const {
        const std::uint8_t* rows[kColumns];
        bytes(rows);
        for (std::int64_t step = 0; step < depth; step += kStep) {
            const std::int64_t count = std::min<std::int64_t>(kStep, depth - step);
            if (count == kStep && weight_.K % 2 == 0) {
                decoder(rows, (k0 + step) >> 1, taker(step));
            } else {
                std::uint8_t copies[kColumns][kStep / 2] = {};
                const std::uint8_t* rows_of_copies[kColumns];
                for (int c = 0; c < kColumns; ++c) {
                    copy_codes(first_[c] + k0 + step, count, copies[c]);
                    rows_of_copies[c] = copies[c];
                }
                decoder(rows_of_copies, 0, taker(step));
            }
        }
    }

    // The codes of `count` elements from `first` on, the first in the high half of to[0]. Reads no byte without one.
    void copy_codes(std::int64_t first, std::int64_t count, std::uint8_t* to) const {
        const std::uint8_t* from = weight_.packed + first / 2;
        if (first % 2 == 0) {
            std::memcpy(to, from, static_cast<std::size_t>((count + 1) / 2));
            return;
        }
        for (std::int64_t i = 0; i < count / 2; ++i) to[i] = static_cast<std::uint8_t>(from[i] << 4 | from[i + 1] >> 4);
        if (count % 2 != 0) to[count / 2] = static_cast<std::uint8_t>(from[count / 2] << 4);
    }

    // Multiplies a panel by scales that change at another k in each column.
    void scale_runs(std::int64_t k0, std::int64_t depth, float* panel) const {
        alignas(64) float scales[kColumns];
        std::int64_t end[kColumns] = {};  // of the block of each column
        for (std::int64_t k = 0; k < depth;) {
            std::int64_t stop = depth;
            for (int c = 0; c < kColumns; ++c) {
                if (end[c] == k) {
                    const std::int64_t block = (first_[c] + k0 + k) >> weight_.blocksize_log2;
                    scales[c] = weight_.scales[block];
                    end[c] = ((block + 1) << weight_.blocksize_log2) - first_[c] - k0;
                }
                stop = std::min(stop, end[c]);
            }
            const F32 scale0 = load(scales), scale1 = load(scales + F32::size);
            for (; k < stop; ++k) {
                float* row = panel + k * kColumns;
                store(row, load(row) * scale0);
                store(row + F32::size, load(row + F32::size) * scale1);
            }
        }
    }

    const Weight4bit& weight_;
    std::int64_t first_[kColumns];  // element of each row
};

}  // namespace bnb_core::BNB_LEVEL
