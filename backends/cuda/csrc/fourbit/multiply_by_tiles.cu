#include <type_traits>

#include "tile.cuh"

namespace bnb_core {

namespace {

template <class T, int HEIGHT, int WIDTH, int DEPTH, int RESIDENT>
__global__ void __launch_bounds__(kThreads, RESIDENT)
    multiply(const T* A, int M, Weight4bit weight, const __grid_constant__ Codes codes, Bias bias, T* out) {
    __shared__ Shared shared;
    bool made = false;
    constexpr int kHeight = HEIGHT * kRows;
    for (std::int64_t n0 = static_cast<std::int64_t>(blockIdx.x) * kHeight; n0 < weight.N;
         n0 += static_cast<std::int64_t>(gridDim.x) * kHeight) {
        multiply_tile<HEIGHT, WIDTH, DEPTH>(shared, made, A, M, weight, 0, codes, bias, out, n0);
    }
}

template <class T>
void multiply_rows(const T* A, std::int64_t M, const Weight4bit& weight, Bias bias, T* out, Stream stream) {
    const Codes codes = codes_of<T>(four_bit(weight.type));
    const auto with = [&](auto kernel, int height, int each) {
        const std::int64_t tiles = (weight.N + height * kRows - 1) / (height * kRows);
        launch("gemm_4bit", kernel, resident(tiles, each), kThreads, stream, A, static_cast<int>(M), weight, codes,
               bias, out);
    };
    if (M <= 8) return with(multiply<T, 1, 1, 4, 2>, 1, 2);
    if (M <= 16) return with(multiply<T, 1, 2, 4, 2>, 1, 2);
    if (M <= 32) return with(multiply<T, 2, 4, 2, 1>, 2, 1);
    with(multiply<T, 2, 8, 2, 1>, 2, 1);
}

}  // namespace

void multiply_by_tiles(const void* A, DType dtype, std::int64_t M, const Weight4bit& weight, Bias bias, void* out,
                       Stream stream) {
    constexpr std::int64_t kMost = 8 * kColumns;
    visit(dtype, [&](auto t) {
        using T = typename decltype(t)::type;
        if constexpr (!std::is_same_v<T, float>) {
            for (std::int64_t row = 0; row < M; row += kMost) {
                multiply_rows(static_cast<const T*>(A) + row * weight.K, M - row < kMost ? M - row : kMost, weight,
                              bias, static_cast<T*>(out) + row * weight.N, stream);
            }
        }
    });
}

}  // namespace bnb_core
