#include "embedding_4bit.h"

#include "../runtime/parallel.h"
#include "decode_block.h"

namespace bnb_core::BNB_LEVEL {

Embedding4bit embedding_4bit;

namespace {

constexpr std::int64_t kLeastElements = 1 << 15;  // worth a thread

}  // namespace

std::int64_t embedding_4bit(Indices indices, const std::uint8_t* packed, std::int64_t rows, std::int64_t columns,
                            Scales scales, std::int64_t blocksize, QuantType type, DType dtype, void* out,
                            int threads) {
    for (std::int64_t i = 0; i < indices.count; ++i) {
        if (indices[i] < 0 || indices[i] >= rows) return i;
    }
    if (columns == 0) return -1;
    visit(dtype, [&](auto t) {
        using T = typename decltype(t)::type;
        parallel(indices.count, kLeastElements / columns, threads, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t first = indices[i] * columns;
                decode_run<false>(four_bit(type), packed, scales, blocksize, first, first + columns,
                                  static_cast<T*>(out) + i * columns);
            }
        });
    });
    return -1;
}

}  // namespace bnb_core::BNB_LEVEL
