#include "int8_double_quant.h"

#include "../runtime/parallel.h"
#include "row.h"

namespace bnb_core::BNB_LEVEL {

Int8DoubleQuant int8_double_quant;

namespace {

constexpr std::int64_t kLeastElements = 1 << 15;  // worth a thread
constexpr std::int64_t kSpan = 512;               // columns whose statistics stay in the first cache
static_assert(kSpan % F32::size == 0);

// absmax of columns [begin, end), with the rows read in order, and its inverse, 0 where there is none.
template <class T>
void measure_columns(const T* A, std::int64_t rows, std::int64_t K, double threshold, std::int64_t begin,
                     std::int64_t end, float* absmax, float* inverse, std::uint8_t* outliers) {
    const Threshold bound = threshold_of(threshold);
    for (; begin < end; begin += kSpan) {
        const std::int64_t count = end - begin < kSpan ? end - begin : kSpan;
        std::int32_t largest[kSpan] = {};
        for (std::int64_t row = 0; row < rows; ++row) {
            const T* x = A + row * K + begin;
            for (std::int64_t i = 0; i < count; i += F32::size) {
                const int n = count - i < F32::size ? static_cast<int>(count - i) : F32::size;
                I32 m = magnitude(n == F32::size ? load(x + i) : load(x + i, n));
                if (threshold > 0) {
                    const Mask outlier = is_outlier(bound, m);
                    if (any(outlier)) {
                        const std::uint32_t lanes = mask_bits(outlier);
                        for (int j = 0; j < n; ++j) {
                            if (lanes >> j & 1u) outliers[begin + i + j] = 1;
                        }
                    }
                    m = select(outlier, i32(0), m);
                }
                store_i32(largest + i, max(load_i32(largest + i), m));
            }
        }
        for (std::int64_t i = 0; i < count; ++i) {
            const float found = absmax_of(largest[i]);
            absmax[begin + i] = found;
            const bool coded = found >= kSmallestInverted && !(threshold > 0 && outliers[begin + i]);
            inverse[begin + i] = coded ? inverse_of(found) : 0.0f;
        }
    }
}

// One row of the codes by column; a column without an inverse is 0.
template <class T>
void encode_by_column(const T* x, std::int64_t K, const float* inverse, std::int8_t* q) {
    for (std::int64_t i = 0; i < K; i += F32::size) {
        const bool whole = K - i >= F32::size;
        const int n = whole ? F32::size : static_cast<int>(K - i);
        const F32 v = whole ? load(x + i) : load(x + i, n);
        const F32 scale = whole ? load(inverse + i) : load(inverse + i, n);
        const I32 code = to_i32(select(scale > f32(0.0f), v * scale, f32(0.0f)));
        if (whole) {
            store_byte(q + i, code);
        } else {
            store_byte(q + i, code, n);
        }
    }
}

// Columns [begin, end) of the codes by column whose absmax is too small to be inverted.
template <class T>
void encode_tiny_columns(const T* A, std::int64_t rows, std::int64_t K, std::int64_t begin, std::int64_t end,
                         const float* absmax, double threshold, const std::uint8_t* outliers, std::int8_t* q) {
    for (std::int64_t k = begin; k < end; ++k) {
        if (!(absmax[k] > 0 && absmax[k] < kSmallestInverted) || (threshold > 0 && outliers[k])) continue;
        const Code<false, false> code{f32(absmax[k]), f32(0.0f), f32(0.0f)};
        for (std::int64_t row = 0; row < rows; ++row) {
            store_byte(q + row * K + k, code(load(A + row * K + k, 1)), 1);
        }
    }
}

template <class T>
void quantize(const T* A, std::int64_t rows, std::int64_t K, double threshold, std::int8_t* q_row, std::int8_t* q_col,
              float* row_absmax, float* col_absmax, std::uint8_t* outliers, float* inverse, int threads) {
    const float limit = threshold > 0 ? static_cast<float>(threshold) : float_of(kInfinityBits);
    parallel(K, kLeastElements / (rows + 1) + 64, threads, [&](std::int64_t begin, std::int64_t end) {
        measure_columns(A, rows, K, threshold, begin, end, col_absmax, inverse, outliers);
    });
    parallel(rows, kLeastElements / (K + 1) + 1, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
            const T* x = A + row * K;
            const float absmax = absmax_of(threshold > 0 ? largest_inlier(x, K, threshold_of(threshold), nullptr)
                                                         : largest_magnitude(x, K));
            row_absmax[row] = absmax;
            if (absmax > 0) {
                with_code(absmax, limit, [&](const auto& code) { encode(x, K, code, q_row + row * K); });
            } else if (K > 0) {  // memset may not be told of no memory
                std::memset(q_row + row * K, 0, static_cast<std::size_t>(K));
            }
            encode_by_column(x, K, inverse, q_col + row * K);
        }
        if (threshold > 0) zero_columns(q_row + begin * K, end - begin, K, outliers);
    });
    parallel(K, kLeastElements, threads, [&](std::int64_t begin, std::int64_t end) {
        encode_tiny_columns(A, rows, K, begin, end, col_absmax, threshold, outliers, q_col);
    });
}

}  // namespace

void int8_double_quant(const void* A, DType dtype, std::int64_t rows, std::int64_t K, double threshold,
                       std::int8_t* q_row, std::int8_t* q_col, float* row_absmax, float* col_absmax,
                       std::uint8_t* outliers, float* inverse, int threads) {
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        quantize(static_cast<const T*>(A), rows, K, threshold, q_row, q_col, row_absmax, col_absmax, outliers, inverse,
                 threads);
    });
}

}  // namespace bnb_core::BNB_LEVEL
