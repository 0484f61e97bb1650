#include "dequantize_blockwise.h"

#include <algorithm>

#include "../runtime/parallel.h"
#include "../simd/simd.h"
#include "codebook.h"

namespace bnb_core::BNB_LEVEL {

DequantizeBlockwise dequantize_blockwise;

namespace {

constexpr std::int64_t kLeastElements = 1 << 15;  // worth a thread

template <class T>
void dequantize(const std::uint8_t* A, const float* absmax, const float* code, std::int64_t blocksize,
                std::int64_t begin, std::int64_t end, T* out) {
    for (std::int64_t i = begin; i < end;) {
        const std::int64_t block = i / blocksize;
        const std::int64_t stop = end - block * blocksize > blocksize ? (block + 1) * blocksize : end;
        const F32 scale = f32(absmax[block]);
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
        parallel(n, kLeastElements, threads, [&](std::int64_t begin, std::int64_t end) {
            dequantize(A, absmax, table, blocksize, begin, end, static_cast<T*>(out));
        });
    });
}

}  // namespace bnb_core::BNB_LEVEL
