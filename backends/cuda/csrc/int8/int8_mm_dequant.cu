#include <type_traits>

#include "../items.cuh"
#include "../warp.cuh"
#include "int8_mm_dequant.h"

namespace bnb_core {

namespace {

constexpr int kItems = 8;                 // columns of a thread side by side
constexpr int kWide = kWarp * kItems;     // columns of a warp, and of a tile
constexpr int kWarps = kThreads / kWarp;  // rows that a block works on at a time
constexpr int kTall = 16 * kWarps;        // rows of a tile
constexpr int kKept = 32;                 // outlier columns in shared memory at a time

constexpr float kProductScale = 6.200124e-05f;  // stands for 1 / 127**2: the public package's number, 2e-5 more

// The product of A's outliers with the weight, in fp32.
template <class T>
class OutlierProduct {
  public:
    __device__ OutlierProduct(const Outliers& outliers, const float* col_stats, std::int64_t column, std::int64_t N,
                              float (*kept)[kWide])
        : outliers_(outliers), col_stats_(col_stats), column_(column), N_(N), count_(*outliers.count), kept_(kept) {
        if (count_ <= kKept) keep(0);
    }

    // Adds those of a row to the sums of a thread. By all threads of the block; `row` may be past the end.
    __device__ void add(std::int64_t row, bool exists, float (&sums)[kItems]) {
        for (std::int64_t first = 0; first < count_; first += kKept) {
            if (count_ > kKept) keep(first);
            if (!exists) continue;
            const T* x = static_cast<const T*>(outliers_.A) + row * outliers_.K;
            for (int j = 0; j < kKept && first + j < count_; ++j) {
                const float a = to_float(x[outliers_.columns[first + j]]);
                const float* weights = kept_[j] + threadIdx.x % kWarp * kItems;
                for (int i = 0; i < kItems; ++i) sums[i] = __fmaf_rn(a, weights[i], sums[i]);
            }
        }
    }

  private:
    // A column for each thread; the reads of kTogether codes, each from another line, are under way at the same time.
    __device__ void keep(std::int64_t first) {
        static_assert(kWide == kThreads);
        constexpr int kTogether = 8;
        const int i = threadIdx.x;
        const bool exists = column_ + i < N_;
        const std::int8_t* row = outliers_.weight + (exists ? column_ + i : column_) * outliers_.K;
        const float scale = exists ? col_stats_[column_ + i] : 0.0f;
        const int left = static_cast<int>(count_ - first < kKept ? count_ - first : kKept);
        __syncthreads();
        for (int begin = 0; begin < left; begin += kTogether) {
            float codes[kTogether];
#pragma unroll
            for (int j = 0; j < kTogether; ++j) {
                codes[j] = begin + j < left ? row[outliers_.columns[first + begin + j]] : 0.0f;
            }
#pragma unroll
            for (int j = 0; j < kTogether; ++j) kept_[begin + j][i] = codes[j];
        }
        for (int j = 0; j < left; ++j) {
            const float value = __fdiv_rn(__fmul_rn(kept_[j][i], scale), 127.0f);
            kept_[j][i] = outliers_.rounded ? to_float(convert<T>(value)) : value;
        }
        __syncthreads();
    }

    const Outliers& outliers_;
    const float* col_stats_;
    std::int64_t column_, N_, count_;
    float (*kept_)[kWide];
};

template <class T, class Bias, bool OUTLIERS>
__global__ void __launch_bounds__(kThreads)
    scale(const std::int32_t* sums, const float* row_stats, const float* col_stats, const Bias* bias, std::int64_t M,
          std::int64_t N, Outliers outliers, bool wide, T* out) {
    __shared__ float kept[OUTLIERS ? kKept : 1][kWide];
    const std::int64_t across = (N + kWide - 1) / kWide;
    const std::int64_t column = blockIdx.x % across * kWide, first = blockIdx.x / across * kTall;
    const std::int64_t at = column + threadIdx.x % kWarp * kItems;
    float factors[kItems], added[kItems] = {};
    read<kItems>(col_stats, at, N, wide, factors);
    for (int i = 0; i < kItems; ++i) factors[i] = __fmul_rn(factors[i], kProductScale);
    if (bias != nullptr) read<kItems>(bias, at, N, wide, added);
    const auto each_row = [&](auto&& add_outliers) {
        for (int r = 0; r < kTall / kWarps; ++r) {
            const std::int64_t row = first + r * kWarps + threadIdx.x / kWarp;
            const bool exists = row < M;
            float values[kItems];
            for (int i = 0; i < kItems; ++i) values[i] = 0.0f;
            if (exists) {
                const float factor = row_stats[row];
                const auto found = read<kItems>(sums + row * N, at, N, wide);
                for (int i = 0; i < kItems; ++i) {
                    const float value = __fmul_rn(__fmul_rn(static_cast<float>(found.of[i]), factor), factors[i]);
                    values[i] = bias == nullptr ? value : __fadd_rn(value, added[i]);
                }
            }
            add_outliers(row, exists, values);
            if (!exists) continue;
            Items<T, kItems> made;
            for (int i = 0; i < kItems; ++i) made.of[i] = convert<T>(values[i]);
            write<kItems>(out + row * N, at, N, wide, made);
        }
    };
    if constexpr (OUTLIERS) {
        OutlierProduct<T> product(outliers, col_stats, column, N, kept);
        each_row([&](std::int64_t row, bool exists, float (&values)[kItems]) {
            float sums_of_outliers[kItems] = {};
            product.add(row, exists, sums_of_outliers);
            for (int i = 0; i < kItems; ++i) {
                const float value = outliers.rounded ? to_float(convert<T>(values[i])) : values[i];
                values[i] = __fadd_rn(value, sums_of_outliers[i]);
            }
        });
    } else {
        each_row([](std::int64_t, bool, float (&)[kItems]) {});
    }
}

__global__ void __launch_bounds__(kThreads)
    dequantize(const std::int8_t* A, const float* stats, std::int64_t rows, std::int64_t width, bool wide, float* out) {
    const std::int64_t across = (width + kWide - 1) / kWide;
    const std::int64_t at = blockIdx.x % across * kWide + threadIdx.x % kWarp * kItems;
    const std::int64_t first = blockIdx.x / across * kTall;
    for (std::int64_t row = first + threadIdx.x / kWarp; row < first + kTall && row < rows; row += kWarps) {
        const float scale = stats[row];
        const auto found = read<kItems>(A + row * width, at, width, wide);
        Items<float, kItems> values;
        for (int i = 0; i < kItems; ++i)
            values.of[i] = __fdiv_rn(__fmul_rn(static_cast<float>(found.of[i]), scale), 127.0f);
        write<kItems>(out + row * width, at, width, wide, values);
    }
}

std::int64_t tiles(std::int64_t rows, std::int64_t width) {
    return (rows + kTall - 1) / kTall * ((width + kWide - 1) / kWide);
}

}  // namespace

void int8_mm_dequant(const std::int32_t* sums, const float* row_stats, const float* col_stats, const void* bias,
                     DType bias_dtype, std::int64_t M, std::int64_t N, const Outliers* outliers, DType dtype, void* out,
                     Stream stream) {
    const bool wide = N % kItems == 0 && aligned(sums, col_stats, bias, out);
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const auto run = [&](auto kernel, auto* typed_bias, const Outliers& of) {
            launch("int8_mm_dequant", kernel, tiles(M, N), kThreads, stream, sums, row_stats, col_stats, typed_bias, M,
                   N, of, wide, static_cast<T*>(out));
        };
        const auto with_bias = [&](auto* typed_bias) {
            using Bias = std::remove_const_t<std::remove_pointer_t<decltype(typed_bias)>>;
            if (outliers == nullptr) return run(scale<T, Bias, false>, typed_bias, Outliers{});
            run(scale<T, Bias, true>, typed_bias, *outliers);
        };
        if (bias_dtype == dtype) return with_bias(static_cast<const T*>(bias));
        with_bias(static_cast<const float*>(bias));
    });
}

void int8_vectorwise_dequant(const std::int8_t* A, const float* stats, std::int64_t rows, std::int64_t width,
                             float* out, Stream stream) {
    launch("int8_vectorwise_dequant", dequantize, tiles(rows, width), kThreads, stream, A, stats, rows, width,
           width % kItems == 0 && aligned(A, out), out);
}

}  // namespace bnb_core
