#include "scale.h"

namespace bnb_core::BNB_LEVEL {
namespace {

constexpr int kChunk = 32;  // outlier columns whose weights are dequantized at a time

template <class T>
float rounded(float value) {
    return to_float(convert<T>(value));
}

template <class T>
void write_plain(const ColumnScales& scales, const float* row_stats, int rows, int columns, const std::int32_t* sums,
                 T* out, std::int64_t N) {
    for (int i = 0; i < rows; ++i) {
        const F32 row = f32(row_stats[i]);
        write_row(out + i * N, columns,
                  [&](int j) BNB_LAMBDA_INLINE { return scales.apply(load_i32(sums + i * kPanel + j), row, j); });
    }
}

template <class T>
void write_with_outliers(const Scaling& scaling, const Outliers& outliers, const ColumnScales& scales, std::int64_t row,
                         int rows, std::int64_t column, int columns, const std::int32_t* sums, T* out) {
    float numbers[kGroupRows * kPanel];
    for (int i = 0; i < rows; ++i) {
        const F32 row_scale = f32(scaling.row_stats[row + i]);
        for (int j = 0; j < columns; j += F32::size) {
            store(numbers + i * kPanel + j, scales.apply(load_i32(sums + i * kPanel + j), row_scale, j));
        }
        if (!outliers.rounded) continue;
        for (int j = 0; j < columns; ++j) numbers[i * kPanel + j] = rounded<T>(numbers[i * kPanel + j]);
    }
    float totals[kGroupRows * kPanel] = {};
    float weights[kChunk * kPanel] = {};
    for (std::int64_t begin = 0; begin < outliers.count; begin += kChunk) {
        const int count = static_cast<int>(outliers.count - begin < kChunk ? outliers.count - begin : kChunk);
        for (int o = 0; o < count; ++o) {
            const std::int8_t* codes = outliers.B + column * outliers.K + outliers.columns[begin + o];
            for (int j = 0; j < columns; ++j) {
                const float weight = static_cast<float>(codes[j * outliers.K]) * scaling.col_stats[column + j] / 127.0f;
                weights[o * kPanel + j] = outliers.rounded ? rounded<T>(weight) : weight;
            }
        }
        for (int i = 0; i < rows; ++i) {
            const float* values = outliers.values + (row + i) * outliers.count + begin;
            for (int j = 0; j < columns; j += F32::size) {
                F32 total = f32(0.0f);
                for (int o = 0; o < count; ++o) total = total + f32(values[o]) * load(weights + o * kPanel + j);
                // A sum of sums: its rounding error does not grow with every outlier.
                store(totals + i * kPanel + j, load(totals + i * kPanel + j) + total);
            }
        }
    }
    for (int i = 0; i < rows; ++i) {
        write_row(out + i * scaling.N, columns, [&](int j) BNB_LAMBDA_INLINE {
            return load(totals + i * kPanel + j) + load(numbers + i * kPanel + j);
        });
    }
}

}  // namespace

void write_scaled(const Scaling& scaling, const Outliers& outliers, std::int64_t row, int rows, std::int64_t column,
                  int columns, const std::int32_t* sums) {
    const ColumnScales scales(scaling, column, columns);
    visit(scaling.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        T* out = static_cast<T*>(scaling.out) + row * scaling.N + column;
        if (outliers.count == 0) {
            write_plain(scales, scaling.row_stats + row, rows, columns, sums, out, scaling.N);
        } else {
            write_with_outliers(scaling, outliers, scales, row, rows, column, columns, sums, out);
        }
    });
}

}  // namespace bnb_core::BNB_LEVEL
