#include "../fourbit/dequantize_4bit.h"
#include "../fourbit/embedding_4bit.h"
#include "../fourbit/gemm_4bit.h"
#include "../fourbit/grouped_gemm_4bit.h"
#include "../fourbit/quantize_4bit.h"
#include "bindings.h"

namespace bnb_core {

namespace {

Scales scales_of(Address absmax, Address absmax_8bit, Address absmax_code, std::int64_t code_size,
                 Address absmax_offset) {
    return {pointer<const float>(absmax), pointer<const std::uint8_t>(absmax_8bit), pointer<const float>(absmax_code),
            code_size, pointer<const float>(absmax_offset)};
}

}  // namespace

void bind_fourbit(py::module_& m) {
    define(m, "quantize_4bit",
           [](std::int64_t device, Address stream, Address A, std::string_view dtype, std::int64_t n,
              std::int64_t blocksize, std::string_view quant_type, Address packed, std::int64_t size, Address absmax) {
               const DeviceGuard guard(static_cast<int>(device));
               quantize_4bit(pointer<const void>(A), dtype_of(dtype), n, blocksize, quant_type_of(quant_type),
                             pointer<std::uint8_t>(packed), size, pointer<float>(absmax), stream_of(stream));
           });
    define(m, "dequantize_4bit",
           [](std::int64_t device, Address stream, Address A, Address absmax, std::int64_t blocksize,
              std::string_view quant_type, std::int64_t n, std::string_view dtype, Address out) {
               const DeviceGuard guard(static_cast<int>(device));
               dequantize_4bit(pointer<const std::uint8_t>(A), pointer<const float>(absmax), log2_of(blocksize),
                               quant_type_of(quant_type), n, dtype_of(dtype), pointer<void>(out), stream_of(stream));
           });
    define(m, "gemm_4bit",
           [](std::int64_t device, Address stream, Address A, std::string_view dtype, std::int64_t M, Address B,
              std::int64_t N, std::int64_t K, Address absmax, Address absmax_8bit, Address absmax_code,
              std::int64_t code_size, Address absmax_offset, std::int64_t blocksize, std::string_view quant_type,
              Address bias, std::string_view bias_dtype, Address out) {
               const DeviceGuard guard(static_cast<int>(device));
               const Weight4bit weight{pointer<const std::uint8_t>(B),
                                       N,
                                       K,
                                       scales_of(absmax, absmax_8bit, absmax_code, code_size, absmax_offset),
                                       log2_of(blocksize),
                                       quant_type_of(quant_type)};
               gemm_4bit(pointer<const void>(A), dtype_of(dtype), M, weight, pointer<const void>(bias),
                         dtype_of(bias_dtype), pointer<void>(out), stream_of(stream));
           });
    define(m, "grouped_gemm_4bit",
           [](std::int64_t device, Address stream, Address A, std::string_view dtype, std::int64_t T, Address B,
              std::int64_t N, std::int64_t K, Address absmax, Address absmax_8bit, Address absmax_code,
              std::int64_t code_size, Address absmax_offset, std::int64_t blocksize, std::string_view quant_type,
              Address ends, bool wide, std::int64_t groups, Address bias, std::string_view bias_dtype, Address out) {
               const DeviceGuard guard(static_cast<int>(device));
               const Weight4bit weight{pointer<const std::uint8_t>(B),
                                       N,
                                       K,
                                       scales_of(absmax, absmax_8bit, absmax_code, code_size, absmax_offset),
                                       log2_of(blocksize),
                                       quant_type_of(quant_type)};
               grouped_gemm_4bit(pointer<const void>(A), dtype_of(dtype), T, weight,
                                 {pointer<const void>(ends), wide, groups}, pointer<const void>(bias),
                                 dtype_of(bias_dtype), pointer<void>(out), stream_of(stream));
           });
    define(m, "embedding_4bit",
           [](std::int64_t device, Address stream, Address indices, bool wide, std::int64_t count, Address B,
              std::int64_t rows, std::int64_t columns, Address absmax, std::int64_t blocksize,
              std::string_view quant_type, std::string_view dtype, Address absmax_8bit, Address absmax_code,
              std::int64_t code_size, Address absmax_offset, Address out) {
               const DeviceGuard guard(static_cast<int>(device));
               const Weight4bit table{pointer<const std::uint8_t>(B),
                                      rows,
                                      columns,
                                      scales_of(absmax, absmax_8bit, absmax_code, code_size, absmax_offset),
                                      log2_of(blocksize),
                                      quant_type_of(quant_type)};
               embedding_4bit({pointer<const void>(indices), wide, count}, table, dtype_of(dtype), pointer<void>(out),
                              stream_of(stream));
           });
}

}  // namespace bnb_core
