#include "int8_mm_dequant.h"

#include "../runtime/parallel.h"
#include "scale.h"

namespace bnb_core::BNB_LEVEL {

Int8MmDequant int8_mm_dequant;

namespace {

constexpr std::int64_t kLeastElements = 1 << 15;  // worth a thread

template <class T>
void scale_row(const std::int32_t* sums, float row_stats, const ColumnScales& scales, int columns, T* out) {
    const F32 row = f32(row_stats);
    int j = 0;
    for (; j + F32::size <= columns; j += F32::size) store(out + j, scales.apply(load_i32(sums + j), row, j));
    if (j < columns) store(out + j, scales.apply(load_i32(sums + j, columns - j), row, j), columns - j);
}

}  // namespace

void int8_mm_dequant(const std::int32_t* A, const float* row_stats, const float* col_stats, const void* bias,
                     DType bias_dtype, std::int64_t rows, std::int64_t N, DType dtype, void* out, int threads) {
    const Scaling scaling{row_stats, col_stats, bias, bias_dtype, out, dtype, N};
    constexpr std::int64_t kRows = 64;  // for which the scales of some columns are prepared
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        parallel(rows, kLeastElements / (N + 1) + 1, threads, [&](std::int64_t begin, std::int64_t end) {
            for (; begin < end; begin += kRows) {
                const std::int64_t last = end - begin < kRows ? end : begin + kRows;
                for (std::int64_t column = 0; column < N; column += kPanel) {
                    const int columns = static_cast<int>(N - column < kPanel ? N - column : kPanel);
                    const ColumnScales scales(scaling, column, columns);
                    for (std::int64_t row = begin; row < last; ++row) {
                        const std::int64_t i = row * N + column;
                        scale_row(A + i, row_stats[row], scales, columns, static_cast<T*>(out) + i);
                    }
                }
            }
        });
    });
}

}  // namespace bnb_core::BNB_LEVEL
