// From int32 products to numbers: scales, bias, outliers, one rounding.
#pragma once

#include "../simd/simd.h"
#include "product.h"

namespace bnb_core {

// What becomes of int32 products of rows of A and of B [N, K]: `sum * row_stats * (col_stats * 6.200124e-5) + bias` in
// fp32, rounded to dtype.
struct Scaling {
    const float* row_stats;
    const float* col_stats;
    const void* bias;  // [N] or null
    DType bias_dtype;
    void* out;  // [rows, N]
    DType dtype;
    std::int64_t N;

    // The same for rows from `row` on.
    BNB_INLINE Scaling from(std::int64_t row) const {
        Scaling rest = *this;
        if (row_stats != nullptr) rest.row_stats += row;
        rest.out = static_cast<char*>(out) + row * N * (dtype == DType::float32 ? 4 : 2);
        return rest;
    }
};

// Columns of the activations that are multiplied in fp32 with the dequantized weight, and added.
struct Outliers {
    const float* values;  // [rows, count]
    const std::int64_t* columns;
    std::int64_t count;
    const std::int8_t* B;
    std::int64_t K;
    bool rounded;  // the other products and the weight are rounded to dtype first, as the public package does
};

}  // namespace bnb_core

namespace bnb_core::BNB_LEVEL {

// Stands for 1 / 127^2, as in the public package on a CPU.
constexpr float kProductScale = 6.200124e-05f;

// Scales and bias of up to kPanel columns.
struct ColumnScales {
    float scale[kPanel] = {};
    float bias[kPanel] = {};
    bool biased;

    BNB_INLINE ColumnScales(const Scaling& scaling, std::int64_t column, int columns)
        : biased(scaling.bias != nullptr) {
        for (int j = 0; j < columns; ++j) scale[j] = scaling.col_stats[column + j] * kProductScale;
        if (!biased) return;
        visit(scaling.bias_dtype, [&](auto type) {
            using T = typename decltype(type)::type;
            const T* p = static_cast<const T*>(scaling.bias) + column;
            for (int j = 0; j < columns; ++j) bias[j] = to_float(p[j]);
        });
    }

    // The numbers of some products of one row. What lies past the columns is of no consequence.
    BNB_INLINE F32 apply(I32 sums, F32 row, int j) const {
        const F32 v = to_f32(sums) * row * load(scale + j);
        return biased ? v + load(bias + j) : v;
    }
};

// Rounds and writes one row's numbers: number(j) gives those from column j on.
template <class T, class F>
BNB_INLINE void write_row(T* out, int columns, F&& number) {
    int j = 0;
    for (; j + F32::size <= columns; j += F32::size) store(out + j, number(j));
    if (j < columns) store(out + j, number(j), columns - j);
}

// A part of a product, as `product` gives it, whose first row is `row` of scaling and outliers.
void write_scaled(const Scaling& scaling, const Outliers& outliers, std::int64_t row, int rows, std::int64_t column,
                  int columns, const std::int32_t* sums);

}  // namespace bnb_core::BNB_LEVEL
