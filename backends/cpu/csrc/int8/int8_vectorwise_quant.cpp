#include "int8_vectorwise_quant.h"

#include "../runtime/parallel.h"
#include "row.h"

namespace bnb_core::BNB_LEVEL {

Int8VectorwiseQuant int8_vectorwise_quant;

namespace {

constexpr std::int64_t kLeastElements = 1 << 15;  // worth a thread

template <class T>
void quantize_row(const T* x, std::int64_t K, double threshold, std::int8_t* q, float* absmax, std::uint8_t* outliers) {
    float limit = float_of(kInfinityBits);
    std::int32_t largest;
    if (threshold > 0) {
        limit = static_cast<float>(threshold);
        largest = largest_inlier(x, K, threshold_of(threshold), outliers);
    } else {
        largest = largest_magnitude(x, K);
    }
    *absmax = absmax_of(largest);
    if (*absmax > 0) {
        with_code(*absmax, limit, [&](const auto& code) { encode(x, K, code, q); });
    } else if (K > 0) {  // memset may not be told of no memory
        std::memset(q, 0, static_cast<std::size_t>(K));
    }
}

}  // namespace

void int8_vectorwise_quant(const void* A, DType dtype, std::int64_t rows, std::int64_t K, double threshold,
                           std::int8_t* q, float* absmax, std::uint8_t* outliers, int threads) {
    const std::int64_t least = kLeastElements / (K + 1) + 1;
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        parallel(rows, least, threads, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t row = begin; row < end; ++row) {
                quantize_row(static_cast<const T*>(A) + row * K, K, threshold, q + row * K, absmax + row, outliers);
            }
        });
    });
    if (threshold > 0) {
        parallel(rows, least, threads,
                 [&](std::int64_t begin, std::int64_t end) { zero_columns(q + begin * K, end - begin, K, outliers); });
    }
}

}  // namespace bnb_core::BNB_LEVEL
