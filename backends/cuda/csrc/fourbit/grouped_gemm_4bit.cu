#include <type_traits>

#include "grouped_gemm_4bit.h"
#include "tile.cuh"

namespace bnb_core {

namespace {

constexpr int kMostGroups = 1024;

// Tiles of rows, numbered through all groups.
struct Groups {
    int before[kMostGroups + 1];

    static __device__ std::int64_t begin(const Indices& ends, int group) {
        const std::int64_t found = group > 0 ? ends[group - 1] : 0;
        return found > 0 ? found : 0;
    }

    static __device__ std::int64_t end(const Indices& ends, int group, std::int64_t rows) {
        const std::int64_t found = ends[group];
        return found < rows ? found : rows;
    }

    // By all threads of a block; height: rows of a tile.
    __device__ void make(const Indices& ends, std::int64_t rows, int height) {
        if (threadIdx.x < kWarp) {
            const int lane = threadIdx.x, groups = static_cast<int>(ends.count);
            int total = 0;
            for (int first = 0; first < groups; first += kWarp) {
                const int group = first + lane;
                int tiles = 0;
                if (group < groups) {
                    const std::int64_t count = end(ends, group, rows) - begin(ends, group);
                    tiles = count > 0 ? static_cast<int>((count + height - 1) / height) : 0;
                }
                for (int distance = 1; distance < kWarp; distance *= 2) {
                    const int below = __shfl_up_sync(kAllLanes, tiles, distance);
                    if (lane >= distance) tiles += below;
                }
                if (group < groups) before[group + 1] = total + tiles;
                total += __shfl_sync(kAllLanes, tiles, kWarp - 1);
            }
            if (lane == 0) before[0] = 0;
        }
        __syncthreads();
    }

    __device__ int of_tile(int tile, int groups) const {
        int low = 0, high = groups - 1;
        while (low < high) {
            const int middle = (low + high) / 2;
            if (before[middle + 1] > tile) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        return low;
    }
};

template <class T, int HEIGHT, int WIDTH, int DEPTH, int RESIDENT>
__global__ void __launch_bounds__(kThreads, RESIDENT)
    multiply(const T* A, std::int64_t rows, Weight4bit weight, Indices ends, const __grid_constant__ Codes codes,
             Bias bias, T* out) {
    __shared__ Shared shared;
    __shared__ Groups groups;
    bool made = false;
    constexpr int kHeight = WIDTH * kColumns, kWidth = HEIGHT * kRows;
    groups.make(ends, rows, kHeight);
    const int count = static_cast<int>(ends.count);
    const std::int64_t parts = (weight.N + kWidth - 1) / kWidth, all = groups.before[count] * parts;
    for (std::int64_t item = blockIdx.x; item < all; item += gridDim.x) {
        const int tile = static_cast<int>(item / parts), group = groups.of_tile(tile, count);
        const std::int64_t row = Groups::begin(ends, group) + (tile - groups.before[group]) * kHeight;
        const std::int64_t left = Groups::end(ends, group, rows) - row;
        multiply_tile<HEIGHT, WIDTH, DEPTH>(shared, made, A + row * weight.K,
                                            static_cast<int>(left < kHeight ? left : kHeight), weight, group, codes,
                                            bias, out + row * weight.N, item % parts * kWidth);
    }
}

}  // namespace

void grouped_gemm_4bit(const void* A, DType dtype, std::int64_t T, const Weight4bit& weight, Indices ends,
                       const void* bias, DType bias_dtype, void* out, Stream stream) {
    if (ends.count == 0) return;
    visit(dtype, [&](auto t) {
        using Element = typename decltype(t)::type;
        if constexpr (!std::is_same_v<Element, float>) {
            const auto with = [&](auto kernel, std::int64_t height, std::int64_t width, int each) {
                const std::int64_t most = T / height + ends.count, tiles = most < T ? most : T;
                const std::int64_t parts = (weight.N + width - 1) / width;
                launch("grouped_gemm_4bit", kernel, resident(tiles * parts, each), kThreads, stream,
                       static_cast<const Element*>(A), T, weight, ends, codes_of<Element>(four_bit(weight.type)),
                       Bias{bias, bias_dtype}, static_cast<Element*>(out));
            };
            // So many rows has a group as a rule.
            if (T <= 12 * ends.count) return with(multiply<Element, 1, 1, 4, 2>, 8, 16, 2);
            with(multiply<Element, 2, 4, 2, 1>, 32, 32, 1);
        }
    });
}

}  // namespace bnb_core
