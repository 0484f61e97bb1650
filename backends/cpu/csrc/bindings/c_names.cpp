// Functions under the C names of the public package's library for CPUs, for callers with pointers and ctypes. They run
// the best level of this CPU on as many threads as torch; sizes below 1 do nothing.
#include <cstdint>
#include <functional>

#include "../kernels.h"
#include "../runtime/levels.h"
#include "../runtime/parallel.h"

#if defined(_WIN32)
#define BNB_C_NAME extern "C" __declspec(dllexport)
#else
#define BNB_C_NAME extern "C" __attribute__((visibility("default")))
#endif

namespace bnb_core {
namespace {

constexpr std::int64_t code_size = 256;

const Kernels& best() {
    static const Kernels& kernels = [] {
        for (const Level& level : levels())
            if (level.missing.empty()) return std::cref(level.kernels());
        return std::cref(levels().back().kernels());
    }();
    return kernels;
}

void quantize(const float* code, const void* A, DType dtype, float* absmax, std::uint8_t* out, long long blocksize,
              long long n) {
    if (blocksize < 1 || n < 1) return;
    best().quantize_blockwise(A, dtype, code, code_size, blocksize, n, out, absmax, max_threads());
}

void dequantize(const float* code, const std::uint8_t* A, const float* absmax, void* out, DType dtype,
                long long blocksize, long long n) {
    if (blocksize < 1 || n < 1) return;
    best().dequantize_blockwise(A, absmax, code, code_size, blocksize, n, dtype, out, max_threads());
}

void dequantize_4bit(const std::uint8_t* A, const float* absmax, void* out, DType dtype, QuantType quant_type,
                     long long blocksize, long long m, long long n) {
    if (blocksize < 1 || m < 1 || n < 1) return;
    best().dequantize_4bit(A, absmax, blocksize, quant_type, m * n, dtype, out, max_threads());
}

}  // namespace
}  // namespace bnb_core

using bnb_core::DType;
using bnb_core::QuantType;

#define BNB_OF_DTYPE(SUFFIX, DTYPE)                                                                                   \
    BNB_C_NAME void cquantize_blockwise_cpu_##SUFFIX(const float* code, const void* A, float* absmax,                 \
                                                     std::uint8_t* out, long long blocksize, long long n) {           \
        bnb_core::quantize(code, A, DType::DTYPE, absmax, out, blocksize, n);                                         \
    }                                                                                                                 \
    BNB_C_NAME void cdequantize_blockwise_cpu_##SUFFIX(const float* code, const std::uint8_t* A, const float* absmax, \
                                                       void* out, long long blocksize, long long n) {                 \
        bnb_core::dequantize(code, A, absmax, out, DType::DTYPE, blocksize, n);                                       \
    }                                                                                                                 \
    BNB_C_NAME void cdequantize_blockwise_cpu_nf4_##SUFFIX(const std::uint8_t* A, const float* absmax, void* out,     \
                                                           long long blocksize, long long m, long long n) {           \
        bnb_core::dequantize_4bit(A, absmax, out, DType::DTYPE, QuantType::nf4, blocksize, m, n);                     \
    }                                                                                                                 \
    BNB_C_NAME void cdequantize_blockwise_cpu_fp4_##SUFFIX(const std::uint8_t* A, const float* absmax, void* out,     \
                                                           long long blocksize, long long m, long long n) {           \
        bnb_core::dequantize_4bit(A, absmax, out, DType::DTYPE, QuantType::fp4, blocksize, m, n);                     \
    }

BNB_OF_DTYPE(fp32, float32)
BNB_OF_DTYPE(fp16, float16)
BNB_OF_DTYPE(bf16, bfloat16)
