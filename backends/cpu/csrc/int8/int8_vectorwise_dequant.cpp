#include "int8_vectorwise_dequant.h"

#include "../runtime/parallel.h"
#include "../simd/simd.h"

namespace bnb_core::BNB_LEVEL {

Int8VectorwiseDequant int8_vectorwise_dequant;

void int8_vectorwise_dequant(const std::int8_t* A, const float* stats, std::int64_t rows, std::int64_t K, float* out,
                             int threads) {
    constexpr std::int64_t kLeastElements = 1 << 15;  // worth a thread
    parallel(rows, kLeastElements / (K + 1) + 1, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
            const std::int8_t* codes = A + row * K;
            const F32 scale = f32(stats[row]), steps = f32(127.0f);
            std::int64_t i = 0;
            for (; i + F32::size <= K; i += F32::size) {
                store(out + row * K + i, to_f32(load_i8(codes + i)) * scale / steps);
            }
            if (i < K) {
                const int rest = static_cast<int>(K - i);
                store(out + row * K + i, to_f32(load_i8(codes + i, rest)) * scale / steps, rest);
            }
        }
    });
}

}  // namespace bnb_core::BNB_LEVEL
