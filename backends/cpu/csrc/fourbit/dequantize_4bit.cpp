#include "dequantize_4bit.h"

#include <algorithm>

#include "../runtime/parallel.h"
#include "decode_block.h"

namespace bnb_core::BNB_LEVEL {

Dequantize4bit dequantize_4bit;

namespace {

constexpr std::int64_t kLeastElements = 1 << 15;  // worth a thread

}  // namespace

void dequantize_4bit(const std::uint8_t* packed, const float* absmax, std::int64_t blocksize, QuantType type,
                     std::int64_t n, DType dtype, void* out, int threads) {
    const Scales scales{absmax};
    const std::int64_t blocks = (n + blocksize - 1) / blocksize;
    visit(dtype, [&](auto t) {
        using T = typename decltype(t)::type;
        parallel(blocks, kLeastElements / blocksize, threads, [&](std::int64_t begin, std::int64_t end) {
            decode_run<false>(four_bit(type), packed, scales, blocksize, begin * blocksize,
                              std::min(n, end * blocksize), static_cast<T*>(out) + begin * blocksize);
        });
    });
}

}  // namespace bnb_core::BNB_LEVEL
