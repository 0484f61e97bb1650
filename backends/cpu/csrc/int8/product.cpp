#include "product.h"

namespace bnb_core::BNB_LEVEL {
namespace {

// Columns multiplied at once, for each number of rows: as many sums as leave registers for the factors.
#if defined(__AVX512F__) || defined(BNB_NEON)
constexpr int kColumns[] = {0, 4, 4, 4, 4, 4, 4};  // 32 registers
#else
constexpr int kColumns[] = {0, 4, 4, 2, 2, 2, 2};  // 16 registers
#endif

// A part of the rows' length: whole vectors [begin, end), and the one after them if the row ends within it.
struct Part {
    std::int64_t begin, end;
    bool rest;
};

template <int rows, int columns>
void multiply_tile(const std::int16_t* A, const std::int8_t* B, std::int64_t K, Part part, std::int32_t* sums) {
    I32 sum[rows][columns];
    BNB_UNROLL
    for (int i = 0; i < rows; ++i) {
        BNB_UNROLL
        for (int j = 0; j < columns; ++j) sum[i][j] = i32(0);
    }
    for (std::int64_t v = part.begin; v < part.end; ++v) {
        I16 b[columns];
        BNB_UNROLL
        for (int j = 0; j < columns; ++j) b[j] = load_i16(B + j * K + v * I16::size);
        BNB_UNROLL
        for (int i = 0; i < rows; ++i) {
            const I16 a = load_i16(A + (v * rows + i) * I16::size);
            BNB_UNROLL
            for (int j = 0; j < columns; ++j) sum[i][j] = dot(sum[i][j], a, b[j]);
        }
    }
    if (part.rest) {
        I16 b[columns];
        BNB_UNROLL
        for (int j = 0; j < columns; ++j) {
            b[j] = K < I16::size ? load_i16(B + j * K, static_cast<int>(K)) : load_i16(B + (j + 1) * K - I16::size);
        }
        BNB_UNROLL
        for (int i = 0; i < rows; ++i) {
            const I16 a = load_i16(A + (part.end * rows + i) * I16::size);
            BNB_UNROLL
            for (int j = 0; j < columns; ++j) sum[i][j] = dot(sum[i][j], a, b[j]);
        }
    }
    BNB_UNROLL
    for (int i = 0; i < rows; ++i) {
        BNB_UNROLL
        for (int j = 0; j < columns; ++j) sums[i * kPanel + j] += reduce_add(sum[i][j]);
    }
}

template <int rows>
void multiply_rows(const std::int16_t* A, const std::int8_t* B, std::int64_t K, int columns, Part part,
                   std::int32_t* sums) {
    int j = 0;
    for (; j + kColumns[rows] <= columns; j += kColumns[rows]) {
        multiply_tile<rows, kColumns[rows]>(A, B + j * K, K, part, sums + j);
    }
    for (; j < columns; ++j) multiply_tile<rows, 1>(A, B + j * K, K, part, sums + j);
}

}  // namespace

void multiply(const Widened& A, std::int64_t begin, std::int64_t end, const std::int8_t* B, int columns,
              std::int32_t* sums) {
    // As much of a tile's rows as leaves half of the first cache (32 KB at least) to the weight.
    constexpr std::int64_t kPartElements = 1 << 13;
    const std::int64_t first = A.first_row(begin), rows = A.first_row(end) - first;
    const std::int64_t most = rows < kTileRows ? rows : kTileRows, whole = A.vectors();
    const std::int64_t step = kPartElements / (most * I16::size);
    for (std::int64_t i = 0; i < rows * kPanel; ++i) sums[i] = 0;
    for (std::int64_t v = 0; v == 0 || v < whole; v += step) {
        const bool last = whole - v <= step;
        const Part part{v, last ? whole : v + step, last && A.rest() > 0};
        for (std::int64_t tile = begin; tile < end; ++tile) {
            const std::int64_t row = A.first_row(tile);
            std::int32_t* out = sums + (row - first) * kPanel;
            switch (A.first_row(tile + 1) - row) {
                case 1:
                    multiply_rows<1>(A.tile(tile), B, A.K, columns, part, out);
                    break;
                case 2:
                    multiply_rows<2>(A.tile(tile), B, A.K, columns, part, out);
                    break;
                case 3:
                    multiply_rows<3>(A.tile(tile), B, A.K, columns, part, out);
                    break;
                case 4:
                    multiply_rows<4>(A.tile(tile), B, A.K, columns, part, out);
                    break;
                case 5:
                    multiply_rows<5>(A.tile(tile), B, A.K, columns, part, out);
                    break;
                default:
                    multiply_rows<6>(A.tile(tile), B, A.K, columns, part, out);
            }
        }
    }
}

}  // namespace bnb_core::BNB_LEVEL
