#include "int8_mm.h"

#include "product.h"

namespace bnb_core::BNB_LEVEL {

Int8Mm int8_mm;

void int8_mm(const std::int8_t* A, const std::int8_t* B, std::int64_t rows, std::int64_t N, std::int64_t K,
             std::int32_t* out, Scratch scratch, int threads) {
    each_block(rows, K, 0, scratch, [&](const Widened& block, std::int64_t first) {
        widen(A + first * K, block, threads);
        product(block, B, N, threads,
                [&](std::int64_t row, int count, std::int64_t column, int columns, const std::int32_t* sums) {
                    for (int i = 0; i < count; ++i) {
                        std::memcpy(out + (first + row + i) * N + column, sums + i * kPanel,
                                    static_cast<std::size_t>(columns) * sizeof(std::int32_t));
                    }
                });
    });
}

}  // namespace bnb_core::BNB_LEVEL
