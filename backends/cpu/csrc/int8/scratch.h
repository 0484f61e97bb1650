#pragma once

#include <algorithm>
#include <cstdint>

namespace bnb_core {

// Memory for products to work in: `size` bytes.
struct Scratch {
    void* memory;
    std::int64_t size;
};

// What a product of rows [rows, K] with up to `outliers` outlier columns needs: the activations in 16 bits and the
// outliers in fp32, a block of rows at a time where they are many; and what int8_linear knows of all rows and columns.
inline std::int64_t scratch_size(std::int64_t rows, std::int64_t K, std::int64_t outliers) {
    constexpr std::int64_t kBlock = 1 << 22;
    const std::int64_t row = 2 * (K + 64) + 4 * outliers + 16;
    const std::int64_t all = outliers > 0 ? 4 * rows + 9 * K : 0;
    return std::min(rows * row, std::max(kBlock, 48 * row)) + all + 256;
}

}  // namespace bnb_core
