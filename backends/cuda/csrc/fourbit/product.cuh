// What the kernels of gemm_4bit share.
#pragma once

#include <cstdint>

#include "../stream.h"
#include "native/fourbit.h"

namespace bnb_core {

// One number for each column of a result, or none.
struct Bias {
    const void* data;
    DType dtype;

    BNB_INLINE float operator[](std::int64_t column) const {
        if (data == nullptr) return 0.0f;
        if (dtype == DType::float32) return static_cast<const float*>(data)[column];
        if (dtype == DType::float16) return to_float(static_cast<const float16*>(data)[column]);
        return to_float(static_cast<const bfloat16*>(data)[column]);
    }
};

// Any rows, weights and addresses, in fp32.
void multiply_by_columns(const void* A, DType dtype, std::int64_t M, const Weight4bit& weight, Bias bias, void* out,
                         Stream stream);

// 16-bit A and whole units of kUnit codes in blocks and rows, fewer than 2^31, all aligned: by tensor cores.
constexpr int kUnitLog2 = 6, kUnit = 1 << kUnitLog2;
constexpr std::int64_t kMostK = 1 << 24;
void multiply_by_tiles(const void* A, DType dtype, std::int64_t M, const Weight4bit& weight, Bias bias, void* out,
                       Stream stream);

}  // namespace bnb_core
