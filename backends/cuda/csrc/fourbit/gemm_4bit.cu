#include "../items.cuh"
#include "gemm_4bit.h"
#include "product.cuh"

namespace bnb_core {

void gemm_4bit(const void* A, DType dtype, std::int64_t M, const Weight4bit& weight, const void* bias, DType bias_dtype,
               void* out, Stream stream) {
    const bool units = weight.K % kUnit == 0 && weight.K <= kMostK && weight.blocksize_log2 >= kUnitLog2 &&
                       weight.N * (weight.K / kUnit) < std::int64_t{1} << 31;
    const bool tiles = dtype != DType::float32 && units && aligned(A, weight.packed) && architecture() >= 80;
    (tiles ? multiply_by_tiles : multiply_by_columns)(A, dtype, M, weight, {bias, bias_dtype}, out, stream);
}

}  // namespace bnb_core
