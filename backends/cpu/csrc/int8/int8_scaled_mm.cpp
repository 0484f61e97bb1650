#include "int8_scaled_mm.h"

#include "scale.h"

namespace bnb_core::BNB_LEVEL {

Int8ScaledMm int8_scaled_mm;

void int8_scaled_mm(const std::int8_t* A, const std::int8_t* B, std::int64_t rows, std::int64_t N, std::int64_t K,
                    const float* row_stats, const float* col_stats, const void* bias, DType bias_dtype,
                    const void* values, const std::int64_t* columns, std::int64_t count, DType dtype, void* out,
                    Scratch scratch, int threads) {
    const Scaling scaling{row_stats, col_stats, bias, bias_dtype, out, dtype, N};
    each_block(rows, K, 4 * count, scratch, [&](const Widened& block, std::int64_t first) {
        widen(A + first * K, block, threads);
        float* const numbers = block.end();
        visit(dtype, [&](auto type) {
            using T = typename decltype(type)::type;
            const T* from = static_cast<const T*>(values) + first * count;
            for (std::int64_t i = 0; i < block.rows * count; ++i) numbers[i] = to_float(from[i]);
        });
        const Scaling of_block = scaling.from(first);
        const Outliers outliers{numbers, columns, count, B, K, true};
        product(block, B, N, threads,
                [&](std::int64_t row, int count, std::int64_t column, int columns, const std::int32_t* sums) {
                    write_scaled(of_block, outliers, row, count, column, columns, sums);
                });
    });
}

}  // namespace bnb_core::BNB_LEVEL
