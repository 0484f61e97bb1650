#include "dequantize_blockwise.h"

#include <cstring>

#include "../runtime/pages.h"
#include "../runtime/parallel.h"
#include "../simd/simd.h"
#include "codebook.h"

namespace bnb_core::BNB_LEVEL {

DequantizeBlockwise dequantize_blockwise;

namespace {

constexpr std::int64_t kLeastElements = 1 << 15;  // worth a thread
constexpr std::int64_t kLongRun = 1 << 10;        // elements of one scale; worth rounding the 256 products beforehand

// Each code picks one of the rounded products: for fp16 and bf16 half the work of a product each.
template <class T>
void pick(const std::uint8_t* A, const float* code, F32 scale, std::int64_t count, T* out) {
    T products[256];
    for (int i = 0; i < 256; i += F32::size) store(products + i, load(code + i) * scale);
    std::int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const T four[] = {products[A[i]], products[A[i + 1]], products[A[i + 2]], products[A[i + 3]]};
        std::memcpy(out + i, four, sizeof four);
    }
    for (; i < count; ++i) out[i] = products[A[i]];
}

template <class T>
void dequantize(const std::uint8_t* A, const float* absmax, const float* code, std::int64_t blocksize,
                std::int64_t begin, std::int64_t end, T* out) {
    for (std::int64_t i = begin; i < end;) {
        const std::int64_t block = i / blocksize;
        const std::int64_t stop = end - block * blocksize > blocksize ? (block + 1) * blocksize : end;
        const F32 scale = f32(absmax[block]);
        if (sizeof(T) < sizeof(float) && stop - i >= kLongRun) {
            pick(A + i, code, scale, stop - i, out + i);
            i = stop;
            continue;
        }
        for (; i + F32::size <= stop; i += F32::size) store(out + i, gather(code, load_u8(A + i)) * scale);
        if (i < stop) {
            const int rest = static_cast<int>(stop - i);
            store(out + i, gather(code, load_u8(A + i, rest)) * scale, rest);
            i = stop;
        }
    }
}

}  // namespace

void dequantize_blockwise(const std::uint8_t* A, const float* absmax, const float* code, std::int64_t code_size,
                          std::int64_t blocksize, std::int64_t n, DType dtype, void* out, int threads) {
    float table[256];
    make_decoder(table, code, code_size);
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        expect_writes(out, n * static_cast<std::int64_t>(sizeof(T)));
        parallel(n, kLeastElements, threads, [&](std::int64_t begin, std::int64_t end) {
            dequantize(A, absmax, table, blocksize, begin, end, static_cast<T*>(out));
        });
    });
}

}  // namespace bnb_core::BNB_LEVEL
