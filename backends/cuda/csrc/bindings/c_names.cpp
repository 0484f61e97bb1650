// Functions under the C names of the public package's library for CUDA, for callers with pointers and ctypes: on the
// current device, and the stream that they are given; those that are given none run on the default one. Sizes below 1
// do nothing, nor do 4-bit block sizes that are no power of 2 from 2 to 4096. An error cannot be told through these
// names; one of the device shows at the caller's next call.
#include <exception>

#include "../blockwise/dequantize_blockwise.h"
#include "../blockwise/quantize_blockwise.h"
#include "../fourbit/dequantize_4bit.h"
#include "../fourbit/product.cuh"
#include "../fourbit/quantize_4bit.h"
#include "../runtime.h"
#include "native/arguments.h"

#if defined(_WIN32)
#define BNB_C_NAME extern "C" __declspec(dllexport)
#else
#define BNB_C_NAME extern "C" __attribute__((visibility("default")))
#endif

namespace bnb_core {
namespace {

constexpr std::int64_t kCodeSize = 256;

// Whether 4-bit codes have such blocks.
bool is_block(int size) { return size >= 2 && size <= 4096 && (size & (size - 1)) == 0; }

template <class F>
void quietly(bool some, F&& f) {
    if (!some) return;
    try {
        f();
    } catch (const std::exception&) {
    }
}

void quantize(const float* code, const void* A, DType dtype, float* absmax, std::uint8_t* out, int blocksize, int n) {
    quietly(blocksize > 0 && n > 0,
            [&] { quantize_blockwise(A, dtype, code, kCodeSize, blocksize, n, out, absmax, nullptr); });
}

void dequantize(const float* code, const std::uint8_t* A, const float* absmax, void* out, DType dtype, int blocksize,
                int n, Stream stream) {
    quietly(blocksize > 0 && n > 0,
            [&] { dequantize_blockwise(A, absmax, code, kCodeSize, blocksize, n, dtype, out, stream); });
}

void quantize(const void* A, DType dtype, QuantType type, float* absmax, std::uint8_t* out, int blocksize, int n) {
    quietly(is_block(blocksize) && n > 0,
            [&] { quantize_4bit(A, dtype, n, blocksize, type, out, (n + 1) / 2, absmax, nullptr); });
}

void dequantize(const std::uint8_t* A, const float* absmax, void* out, DType dtype, QuantType type, int blocksize,
                int n, Stream stream) {
    quietly(is_block(blocksize) && n > 0,
            [&] { dequantize_4bit(A, absmax, log2_of(blocksize), type, n, dtype, out, stream); });
}

// One row of A [k] times the transpose of the weight [m, k], whose codes stand for 16 numbers on the device.
void multiply(const void* A, DType dtype, const std::uint8_t* B, const float* absmax, const float* values, void* out,
              int m, int k, int blocksize, Stream stream) {
    quietly(is_block(blocksize) && m > 0 && k > 0, [&] {
        const Weight4bit weight{B, m, k, {absmax}, log2_of(blocksize), QuantType::nf4, values};
        multiply_by_columns(A, dtype, 1, weight, Bias{nullptr, DType::float32}, out, stream);
    });
}

}  // namespace
}  // namespace bnb_core

using bnb_core::DType;
using bnb_core::QuantType;
using bnb_core::Stream;

#define BNB_OF_4BIT(SUFFIX, DTYPE, TYPE)                                                                              \
    BNB_C_NAME void cquantize_blockwise_##SUFFIX##_##TYPE(const float*, const void* A, float* absmax,                 \
                                                          std::uint8_t* out, int blocksize, int n) {                  \
        bnb_core::quantize(A, DType::DTYPE, QuantType::TYPE, absmax, out, blocksize, n);                              \
    }                                                                                                                 \
    BNB_C_NAME void cdequantize_blockwise_##SUFFIX##_##TYPE(const float*, const std::uint8_t* A, const float* absmax, \
                                                            void* out, int blocksize, int n, Stream stream) {         \
        bnb_core::dequantize(A, absmax, out, DType::DTYPE, QuantType::TYPE, blocksize, n, stream);                    \
    }

#define BNB_OF_DTYPE(SUFFIX, DTYPE)                                                                                    \
    BNB_C_NAME void cquantize_blockwise_##SUFFIX(const float* code, const void* A, float* absmax, std::uint8_t* out,   \
                                                 int blocksize, int n) {                                               \
        bnb_core::quantize(code, A, DType::DTYPE, absmax, out, blocksize, n);                                          \
    }                                                                                                                  \
    BNB_C_NAME void cdequantize_blockwise_##SUFFIX(const float* code, const std::uint8_t* A, const float* absmax,      \
                                                   void* out, int blocksize, int n, Stream stream) {                   \
        bnb_core::dequantize(code, A, absmax, out, DType::DTYPE, blocksize, n, stream);                                \
    }                                                                                                                  \
    /* The leading dimensions follow from m and k. */                                                                  \
    BNB_C_NAME void cgemm_4bit_inference_naive_##SUFFIX(int m, int, int k, const void* A, const std::uint8_t* B,       \
                                                        const float* absmax, const float* values, void* out, int, int, \
                                                        int, int blocksize, Stream stream) {                           \
        bnb_core::multiply(A, DType::DTYPE, B, absmax, values, out, m, k, blocksize, stream);                          \
    }                                                                                                                  \
    BNB_OF_4BIT(SUFFIX, DTYPE, fp4)                                                                                    \
    BNB_OF_4BIT(SUFFIX, DTYPE, nf4)

BNB_OF_DTYPE(fp32, float32)
BNB_OF_DTYPE(fp16, float16)
BNB_OF_DTYPE(bf16, bfloat16)
