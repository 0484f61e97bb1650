#include "../items.cuh"
#include "../warp.cuh"
#include "int8_mm.h"

namespace bnb_core {

namespace {

constexpr int kBytes = 16;  // of a lane side by side

using Fours = Items<int, kBytes / 4>;

// A warp makes ROWS x COLUMNS sums. WIDE: rows are whole accesses of 16 bytes, and aligned.
template <int ROWS, int COLUMNS, bool WIDE>
__global__ void __launch_bounds__(kThreads, ROWS* COLUMNS > 8 ? 2 : 3)
    multiply(const std::int8_t* A, const std::int8_t* B, std::int64_t M, std::int64_t N, std::int64_t K,
             std::int32_t* out) {
    constexpr int kWarps = kThreads / kWarp;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const std::int64_t across = (N + kWarps * COLUMNS - 1) / (kWarps * COLUMNS);
    const std::int64_t row = blockIdx.x / across * ROWS, column = (blockIdx.x % across * kWarps + warp) * COLUMNS;
    if (column >= N) return;
    // Of sums of K products in 32 bits, K is such that offsets are in them too.
    const int stride = static_cast<int>(K), rows = static_cast<int>(M - row < ROWS ? M - row : ROWS);
    const int columns = static_cast<int>(N - column < COLUMNS ? N - column : COLUMNS);
    const std::int8_t *const a = A + row * K, *const b = B + column * K;
    const auto row_of_A = [&](int r) { return a + (r < rows ? r : rows - 1) * stride; };
    const auto row_of_B = [&](int c) { return b + (c < columns ? c : columns - 1) * stride; };
    int sums[ROWS][COLUMNS] = {};
    if constexpr (WIDE) {
        constexpr int kTogether = ROWS * COLUMNS > 2 ? 1 : 4;
#pragma unroll kTogether
        for (int k = lane * kBytes; k < stride; k += kWarp * kBytes) {
            Fours weight[COLUMNS];
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) weight[c] = *reinterpret_cast<const Fours*>(row_of_B(c) + k);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const Fours x = *reinterpret_cast<const Fours*>(row_of_A(r) + k);
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) {
                    for (int i = 0; i < kBytes / 4; ++i) sums[r][c] = __dp4a(x.of[i], weight[c].of[i], sums[r][c]);
                }
            }
        }
    } else {
        for (int k = lane; k < stride; k += kWarp) {
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const int weight = row_of_B(c)[k];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) sums[r][c] += row_of_A(r)[k] * weight;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            int sum = sums[r][c];
            for (int distance = kWarp / 2; distance > 0; distance /= 2) {
                sum += __shfl_xor_sync(kAllLanes, sum, distance);
            }
            if (lane == 0 && r < rows && c < columns) out[(row + r) * N + column + c] = sum;
        }
    }
}

}  // namespace

void int8_mm(const std::int8_t* A, const std::int8_t* B, std::int64_t M, std::int64_t N, std::int64_t K,
             std::int32_t* out, Stream stream) {
    const auto by = [&](auto kernel, std::int64_t rows, std::int64_t columns) {
        const std::int64_t each = kThreads / kWarp * columns;
        launch("int8_mm", kernel, (M + rows - 1) / rows * ((N + each - 1) / each), kThreads, stream, A, B, M, N, K,
               out);
    };
    if (!aligned(A, B) || K % kBytes != 0) return by(multiply<4, 2, false>, 4, 2);
    // More columns of a warp read A less often, fewer fill a GPU with fewer columns.
    if (M <= 1) return by(multiply<1, 1, true>, 1, 1);
    if (M <= 2) return by(multiply<2, 1, true>, 2, 1);
    if (M <= 4) return by(multiply<4, 2, true>, 4, 2);
    if (M <= 8) return by(multiply<8, 2, true>, 8, 2);
    by(multiply<16, 2, true>, 16, 2);
}

}  // namespace bnb_core
