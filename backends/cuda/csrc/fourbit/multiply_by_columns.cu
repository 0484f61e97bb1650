#include "../items.cuh"
#include "product.cuh"
#include "values.cuh"

namespace bnb_core {

namespace {

constexpr int kItems = 8;  // of a lane, side by side

// A warp for each column, and ROWS rows of it. WIDE: rows are whole runs, and everything is aligned.
template <class T, int ROWS>
__global__ void __launch_bounds__(kThreads)
    multiply(const T* A, std::int64_t M, Weight4bit weight, const __grid_constant__ FourBit type, Bias bias, bool wide,
             T* out) {
    __shared__ Values table;
    table.make(weight.values == nullptr ? type.values : weight.values);
    const std::int64_t N = weight.N, K = weight.K, all = (M + ROWS - 1) / ROWS * N;
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * (kThreads / kWarp);
    const int lane = threadIdx.x % kWarp;
    std::int64_t mine = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
    for (; mine < all; mine += step) {
        const std::int64_t group = mine / N, column = mine - group * N, first = column * K;
        const T* rows[ROWS];
        float totals[ROWS] = {};
        for (int r = 0; r < ROWS; ++r) {
            const std::int64_t row = group * ROWS + r;
            rows[r] = A + (row < M ? row : M - 1) * K;
        }
        if (wide) {
            constexpr int kStep = kWarp * kItems, kRuns = ROWS == 1 ? 4 : 2;  // under way at a time
            for (std::int64_t begin = lane * kItems; begin < K; begin += kRuns * kStep) {
                std::uint32_t codes[kRuns];
                float scales[kRuns];
                for (int i = 0; i < kRuns; ++i) {
                    const std::int64_t at = begin + i * kStep;
                    codes[i] = at < K ? codes_at<kItems>(weight.packed, first + at) : 0;
                    scales[i] = at < K ? weight.scales[(first + at) >> weight.blocksize_log2] : 0.0f;
                }
                for (int i = 0; i < kRuns; ++i) {
                    float values[kItems];
                    for (int j = 0; j < kItems; ++j) values[j] = table.at(codes[i], j);
                    for (int r = 0; r < ROWS; ++r) {
                        float x[kItems], sum = 0.0f;
                        read<kItems>(rows[r], begin + i * kStep, K, true, x);
                        for (int j = 0; j < kItems; ++j) sum = __fmaf_rn(x[j], values[j], sum);
                        totals[r] = __fmaf_rn(sum, scales[i], totals[r]);
                    }
                }
            }
        } else {
            for (std::int64_t k = lane; k < K; k += kWarp) {
                const std::int64_t element = first + k;
                const unsigned byte = weight.packed[element / 2];
                const float scale = weight.scales[element >> weight.blocksize_log2];
                const float value = __fmul_rn(table[element % 2 == 0 ? byte >> 4 : byte & 15], scale);
                for (int r = 0; r < ROWS; ++r) totals[r] = __fmaf_rn(to_float(rows[r][k]), value, totals[r]);
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            const float total = __fadd_rn(sum_of(totals[r]), bias[column]);
            const std::int64_t row = group * ROWS + r;
            if (lane == 0 && row < M) out[row * N + column] = convert<T>(total);
        }
    }
}

}  // namespace

void multiply_by_columns(const void* A, DType dtype, std::int64_t M, const Weight4bit& weight, Bias bias, void* out,
                         Stream stream) {
    visit(dtype, [&](auto t) {
        using T = typename decltype(t)::type;
        const bool wide = weight.K % kItems == 0 && aligned(A, weight.packed);
        const auto with = [&](auto kernel, std::int64_t rows) {
            constexpr std::int64_t kWarps = kThreads / kWarp;
            const std::int64_t all = (M + rows - 1) / rows * weight.N;
            launch("gemm_4bit", kernel, resident((all + kWarps - 1) / kWarps), kThreads, stream,
                   static_cast<const T*>(A), M, weight, four_bit(weight.type), bias, wide, static_cast<T*>(out));
        };
        M == 1 ? with(multiply<T, 1>, 1) : with(multiply<T, 4>, 4);
    });
}

}  // namespace bnb_core
