#include "quantize_blockwise.h"

#include "../runtime/parallel.h"
#include "codebook.h"

namespace bnb_core::BNB_LEVEL {

QuantizeBlockwise quantize_blockwise;

namespace {

constexpr std::int64_t kLeastElements = 1 << 14;  // worth a thread
constexpr std::int64_t kTile = 1 << 12;           // elements that stay in L1 between the two passes
constexpr std::int64_t kLargeBlock = 1 << 16;     // elements; worth several threads
constexpr std::int64_t kParts = 256;              // of a large block

template <class T>
void quantize_blocks(const Encoder& encoder, const T* A, std::int64_t blocksize, std::int64_t n, std::int64_t begin,
                     std::int64_t end, std::uint8_t* q, float* absmax) {
    const std::int64_t tile = blocksize < kTile ? kTile / blocksize : 1;
    for (std::int64_t first = begin; first < end; first += tile) {
        const std::int64_t last = end - first > tile ? first + tile : end;
        const std::int64_t start = first * blocksize,
                           stop = n - start > (last - first) * blocksize ? last * blocksize : n;
        for (std::int64_t block = first, i = start; block < last; ++block, i += blocksize) {
            absmax[block] = largest_magnitude(A + i, stop - i > blocksize ? blocksize : stop - i);
        }
        encode(encoder, A + start, absmax + first, blocksize, stop - start, q + start);
    }
}

// A block on several threads.
template <class T>
void quantize_large_block(const Encoder& encoder, const T* A, std::int64_t n, std::uint8_t* q, float* absmax,
                          int threads) {
    float largest[kParts];
    const std::int64_t part = (n + kParts - 1) / kParts;
    parallel(kParts, kLeastElements / part + 1, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t rest = n - i * part;
            largest[i] = rest > 0 ? largest_magnitude(A + i * part, rest > part ? part : rest) : 0.0f;
        }
    });
    *absmax = largest_magnitude(largest, kParts);
    parallel(n, kLeastElements, threads, [&](std::int64_t begin, std::int64_t end) {
        encode(encoder, A + begin, absmax, n, end - begin, q + begin);
    });
}

}  // namespace

void quantize_blockwise(const void* A, DType dtype, const float* code, std::int64_t code_size, std::int64_t blocksize,
                        std::int64_t n, std::uint8_t* q, float* absmax, int threads) {
    Encoder encoder;
    make_encoder(encoder, code, code_size, n);
    const std::int64_t blocks = n / blocksize + (n % blocksize > 0);
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const T* values = static_cast<const T*>(A);
        if (blocksize > kLargeBlock && blocks < 4 * threads) {
            for (std::int64_t block = 0, i = 0; block < blocks; ++block, i += blocksize) {
                const std::int64_t size = n - i > blocksize ? blocksize : n - i;
                quantize_large_block(encoder, values + i, size, q + i, absmax + block, threads);
            }
            return;
        }
        parallel(blocks, kLeastElements / blocksize + 1, threads, [&](std::int64_t begin, std::int64_t end) {
            quantize_blocks(encoder, values, blocksize, n, begin, end, q, absmax);
        });
    });
}

}  // namespace bnb_core::BNB_LEVEL
