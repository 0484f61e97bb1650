#include "../items.cuh"
#include "../warp.cuh"
#include "int8_mm.h"

namespace bnb_core {

namespace {

constexpr int kBytes = 16;  // of a lane side by side

union Bytes {
    Items<std::int8_t, kBytes> codes;
    int fours[kBytes / 4];
};

// A warp makes ROWS x COLUMNS sums.
template <int ROWS, int COLUMNS>
__global__ void __launch_bounds__(kThreads) multiply(const std::int8_t* A, const std::int8_t* B, std::int64_t M,
                                                     std::int64_t N, std::int64_t K, bool wide, std::int32_t* out) {
    constexpr int kWarps = kThreads / kWarp;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const std::int64_t across = (N + kWarps * COLUMNS - 1) / (kWarps * COLUMNS);
    const std::int64_t row = blockIdx.x / across * ROWS, column = (blockIdx.x % across * kWarps + warp) * COLUMNS;
    if (column >= N) return;
    int sums[ROWS][COLUMNS] = {};
    for (std::int64_t k = lane * kBytes; k < K; k += kWarp * kBytes) {
        Bytes weight[COLUMNS], x;
        for (int c = 0; c < COLUMNS; ++c) {
            weight[c].codes = read<kBytes>(B + (column + c < N ? column + c : N - 1) * K, k, K, wide);
        }
        for (int r = 0; r < ROWS; ++r) {
            x.codes = read<kBytes>(A + (row + r < M ? row + r : M - 1) * K, k, K, wide);
            for (int c = 0; c < COLUMNS; ++c) {
                for (int i = 0; i < kBytes / 4; ++i) sums[r][c] = __dp4a(x.fours[i], weight[c].fours[i], sums[r][c]);
            }
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        for (int c = 0; c < COLUMNS; ++c) {
            int sum = sums[r][c];
            for (int distance = kWarp / 2; distance > 0; distance /= 2) {
                sum += __shfl_xor_sync(kAllLanes, sum, distance);
            }
            if (lane == 0 && row + r < M && column + c < N) out[(row + r) * N + column + c] = sum;
        }
    }
}

}  // namespace

void int8_mm(const std::int8_t* A, const std::int8_t* B, std::int64_t M, std::int64_t N, std::int64_t K,
             std::int32_t* out, Stream stream) {
    const bool wide = aligned(A, B) && K % kBytes == 0;
    const auto by = [&](auto kernel, std::int64_t rows, std::int64_t columns) {
        const std::int64_t each = kThreads / kWarp * columns;
        launch("int8_mm", kernel, (M + rows - 1) / rows * ((N + each - 1) / each), kThreads, stream, A, B, M, N, K,
               wide, out);
    };
    // More columns of a warp read A less often, fewer fill a GPU with fewer columns.
    if (M <= 1) return by(multiply<1, 1>, 1, 1);
    if (M <= 2) return by(multiply<2, 1>, 2, 1);
    if (M <= 4) return by(multiply<4, 2>, 4, 2);
    if (M <= 8) return by(multiply<8, 2>, 8, 2);
    by(multiply<16, 4>, 16, 4);
}

}  // namespace bnb_core
