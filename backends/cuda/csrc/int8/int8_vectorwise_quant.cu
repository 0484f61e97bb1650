#include "../items.cuh"
#include "../warp.cuh"
#include "int8_vectorwise_quant.h"

namespace bnb_core {

namespace {

constexpr int kItems = 8;  // elements of a thread side by side

// Codes of numbers with one absmax: 127 * x / absmax to the nearest integer, the even one of two.
struct Scale {
    float absmax, inverse;
    bool some, invertible;

    __device__ __forceinline__ explicit Scale(std::uint32_t largest)
        : absmax(absmax_of(largest)), some(absmax > 0.0f), invertible(absmax >= 0x1p-120f) {
        inverse = invertible ? __fmul_rn(__fdiv_rn(1.0f, absmax), 127.0f) : 0.0f;  // else it could overflow
    }

    __device__ __forceinline__ std::int8_t code(float x) const {
        if (!some) return 0;
        const float t = invertible ? __fmul_rn(x, inverse) : __fmul_rn(__fdiv_rn(x, absmax), 127.0f);
        return static_cast<std::int8_t>(__float2int_rn(t));
    }
};

__device__ __forceinline__ bool is_outlier(float x, float threshold) {
    return threshold > 0.0f && fabsf(x) >= threshold;
}

// A row is read twice: the second time it is in a cache.
template <class T>
__global__ void __launch_bounds__(kThreads) by_row(const T* A, std::int64_t rows, std::int64_t width, float threshold,
                                                   bool wide, std::int8_t* q, float* absmax, std::uint8_t* outliers) {
    for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* x = A + row * width;
        std::uint32_t largest = 0;
        for (std::int64_t at = threadIdx.x * kItems; at < width; at += kThreads * kItems) {
            float values[kItems];
            read<kItems>(x, at, width, wide, values);
            for (int i = 0; i < kItems; ++i) {
                if (!is_outlier(values[i], threshold)) {
                    largest = larger(largest, magnitude(values[i]));
                } else {
                    outliers[at + i] = 1;
                }
            }
        }
        const Scale scale(largest_of_block(largest));
        if (threadIdx.x == 0) absmax[row] = scale.absmax;
        for (std::int64_t at = threadIdx.x * kItems; at < width; at += kThreads * kItems) {
            float values[kItems];
            Items<std::int8_t, kItems> codes;
            read<kItems>(x, at, width, wide, values);
            for (int i = 0; i < kItems; ++i) {
                codes.of[i] = is_outlier(values[i], threshold) ? std::int8_t{0} : scale.code(values[i]);
            }
            write<kItems>(q + row * width, at, width, wide, codes);
        }
    }
}

constexpr int kWide = kWarp * kItems;        // columns that a warp reads at a time
constexpr int kWarps = kThreads / kWarp;     // rows that a block reads at a time
constexpr std::int64_t kTall = 16 * kWarps;  // rows of a tile

// The largest magnitudes of the columns of a tile, as bits.
template <class T>
__global__ void __launch_bounds__(kThreads)
    largest_by_column(const T* A, std::int64_t rows, std::int64_t width, float threshold, bool wide, int* largest) {
    __shared__ std::uint32_t found[kWarps][kWide];
    const std::int64_t across = (width + kWide - 1) / kWide;
    const std::int64_t column = blockIdx.x % across * kWide, first = blockIdx.x / across * kTall;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    std::uint32_t mine[kItems] = {};
    for (std::int64_t row = first + warp; row < first + kTall && row < rows; row += kWarps) {
        float values[kItems];
        read<kItems>(A + row * width, column + lane * kItems, width, wide, values);
        for (int i = 0; i < kItems; ++i) {
            if (!is_outlier(values[i], threshold)) mine[i] = larger(mine[i], magnitude(values[i]));
        }
    }
    for (int i = 0; i < kItems; ++i) found[warp][lane * kItems + i] = mine[i];
    __syncthreads();
    for (int i = threadIdx.x; i < kWide && column + i < width; i += kThreads) {
        std::uint32_t all = 0;
        for (int w = 0; w < kWarps; ++w) all = larger(all, found[w][i]);
        atomicMax(largest + column + i, static_cast<int>(all));
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) by_column(const T* A, std::int64_t rows, std::int64_t width,
                                                      float threshold, bool wide, const float* absmax, std::int8_t* q) {
    const std::int64_t across = (width + kWide - 1) / kWide;
    const std::int64_t first = blockIdx.x / across * kTall;
    const std::int64_t at = blockIdx.x % across * kWide + threadIdx.x % kWarp * kItems;
    float scales[kItems];
    read<kItems>(absmax, at, width, wide, scales);
    for (std::int64_t row = first + threadIdx.x / kWarp; row < first + kTall && row < rows; row += kWarps) {
        float values[kItems];
        Items<std::int8_t, kItems> codes;
        read<kItems>(A + row * width, at, width, wide, values);
        for (int i = 0; i < kItems; ++i) {
            const Scale scale(__float_as_uint(scales[i]));
            codes.of[i] = is_outlier(values[i], threshold) ? std::int8_t{0} : scale.code(values[i]);
        }
        write<kItems>(q + row * width, at, width, wide, codes);
    }
}

__global__ void __launch_bounds__(kThreads) finish(std::int64_t count, float* absmax) {
    const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (at < count) absmax[at] = absmax_of(__float_as_uint(absmax[at]));
}

__global__ void __launch_bounds__(kThreads)
    clear(const std::uint8_t* outliers, std::int64_t rows, std::int64_t width, std::int8_t* q) {
    const std::int64_t across = (width + kThreads - 1) / kThreads;
    const std::int64_t column = blockIdx.x % across * kThreads + threadIdx.x, first = blockIdx.x / across * kTall;
    if (column >= width || outliers[column] == 0) return;
    for (std::int64_t row = first; row < first + kTall && row < rows; ++row) q[row * width + column] = 0;
}

// One block.
__global__ void __launch_bounds__(kThreads)
    list(const std::uint8_t* outliers, std::int64_t width, std::int64_t* columns, std::int64_t* count) {
    __shared__ int found[kWarps];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int before = 0;
    for (std::int64_t first = 0; first < width; first += kThreads) {
        const std::int64_t column = first + threadIdx.x;
        const bool mine = column < width && outliers[column] != 0;
        const unsigned marked = __ballot_sync(kAllLanes, mine);
        if (lane == 0) found[warp] = __popc(marked);
        __syncthreads();
        int at = before + __popc(marked & ((1u << lane) - 1u));
        for (int w = 0; w < kWarps; ++w) {
            if (w < warp) at += found[w];
            before += found[w];
        }
        if (mine) columns[at] = column;
        __syncthreads();
    }
    if (threadIdx.x == 0) *count = before;
}

}  // namespace

void int8_vectorwise_quant(const void* A, DType dtype, std::int64_t rows, std::int64_t width, float threshold,
                           std::int8_t* q, float* absmax, std::uint8_t* outliers, Stream stream) {
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        launch("int8_vectorwise_quant", by_row<T>, resident(rows), kThreads, stream, static_cast<const T*>(A), rows,
               width, threshold, aligned(A, q) && width % 16 == 0, q, absmax, outliers);
    });
}

void int8_columnwise_quant(const void* A, DType dtype, std::int64_t rows, std::int64_t width, float threshold,
                           std::int8_t* q, float* absmax, Stream stream) {
    const std::int64_t tiles = (width + kWide - 1) / kWide * ((rows + kTall - 1) / kTall);
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const T* x = static_cast<const T*>(A);
        const bool wide = aligned(A, q, absmax) && width % 16 == 0;
        launch("int8_double_quant", largest_by_column<T>, tiles, kThreads, stream, x, rows, width, threshold, wide,
               reinterpret_cast<int*>(absmax));
        launch("int8_double_quant", finish, (width + kThreads - 1) / kThreads, kThreads, stream, width, absmax);
        launch("int8_double_quant", by_column<T>, tiles, kThreads, stream, x, rows, width, threshold, wide, absmax, q);
    });
}

void int8_clear_columns(const std::uint8_t* outliers, std::int64_t rows, std::int64_t width, std::int8_t* q,
                        Stream stream) {
    const std::int64_t tiles = (width + kThreads - 1) / kThreads * ((rows + kTall - 1) / kTall);
    launch("int8_vectorwise_quant", clear, tiles, kThreads, stream, outliers, rows, width, q);
}

void int8_list_columns(const std::uint8_t* outliers, std::int64_t width, std::int64_t* columns, std::int64_t* count,
                       Stream stream) {
    launch("int8_linear", list, 1, kThreads, stream, outliers, width, columns, count);
}

}  // namespace bnb_core
