#include "bindings.h"

namespace bnb_core {

void bind_fourbit(py::module_& m, const Kernels& kernels) {
    define(m, "quantize_4bit",
           [&kernels](Address A, std::string_view dtype, std::int64_t n, std::int64_t blocksize,
                      std::string_view quant_type, Address packed, std::int64_t size, Address absmax, int threads) {
               kernels.quantize_4bit(pointer<const void>(A), dtype_of(dtype), n, blocksize, quant_type_of(quant_type),
                                     pointer<std::uint8_t>(packed), size, pointer<float>(absmax), threads);
           });
    define(m, "dequantize_4bit",
           [&kernels](Address A, Address absmax, std::int64_t blocksize, std::string_view quant_type, std::int64_t n,
                      std::string_view dtype, Address out, int threads) {
               kernels.dequantize_4bit(pointer<const std::uint8_t>(A), pointer<const float>(absmax), blocksize,
                                       quant_type_of(quant_type), n, dtype_of(dtype), pointer<void>(out), threads);
           });
    define(m, "gemm_4bit",
           [&kernels](Address A, std::string_view dtype, std::int64_t M, Address B, std::int64_t N, std::int64_t K,
                      Address absmax, Address absmax_8bit, Address absmax_code, std::int64_t code_size,
                      Address absmax_offset, std::int64_t blocksize, std::string_view quant_type, Address bias,
                      std::string_view bias_dtype, Address out, int threads) {
               const Scales scales{pointer<const float>(absmax), pointer<const std::uint8_t>(absmax_8bit),
                                   pointer<const float>(absmax_code), code_size, pointer<const float>(absmax_offset)};
               const Weight4bit weight{pointer<const std::uint8_t>(B), N, K, scales, log2_of(blocksize),
                                       quant_type_of(quant_type)};
               kernels.gemm_4bit(pointer<const void>(A), dtype_of(dtype), M, weight, pointer<const void>(bias),
                                 dtype_of(bias_dtype), pointer<void>(out), threads);
           });
    // Returns -1, or the place of the first index that is no row.
    define(m, "embedding_4bit",
           [&kernels](Address indices, bool wide, std::int64_t count, Address B, std::int64_t rows,
                      std::int64_t columns, Address absmax, std::int64_t blocksize, std::string_view quant_type,
                      std::string_view dtype, Address absmax_8bit, Address absmax_code, std::int64_t code_size,
                      Address absmax_offset, Address out, int threads) {
               const Scales scales{pointer<const float>(absmax), pointer<const std::uint8_t>(absmax_8bit),
                                   pointer<const float>(absmax_code), code_size, pointer<const float>(absmax_offset)};
               return kernels.embedding_4bit({pointer<const void>(indices), wide, count},
                                             pointer<const std::uint8_t>(B), rows, columns, scales, blocksize,
                                             quant_type_of(quant_type), dtype_of(dtype), pointer<void>(out), threads);
           });
}

}  // namespace bnb_core
