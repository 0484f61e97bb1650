#include "../int8/int8_mm.h"
#include "../int8/int8_mm_dequant.h"
#include "../int8/int8_vectorwise_quant.h"
#include "bindings.h"

namespace bnb_core {

void bind_int8(py::module_& m) {
    define(m, "int8_vectorwise_quant",
           [](std::int64_t device, Address stream, Address A, std::string_view dtype, std::int64_t rows,
              std::int64_t width, double threshold, Address q, Address absmax, Address outliers) {
               const DeviceGuard guard(static_cast<int>(device));
               int8_vectorwise_quant(pointer<const void>(A), dtype_of(dtype), rows, width,
                                     static_cast<float>(threshold), pointer<std::int8_t>(q), pointer<float>(absmax),
                                     pointer<std::uint8_t>(outliers), stream_of(stream));
           });
    define(m, "int8_columnwise_quant",
           [](std::int64_t device, Address stream, Address A, std::string_view dtype, std::int64_t rows,
              std::int64_t width, double threshold, Address q, Address absmax) {
               const DeviceGuard guard(static_cast<int>(device));
               int8_columnwise_quant(pointer<const void>(A), dtype_of(dtype), rows, width,
                                     static_cast<float>(threshold), pointer<std::int8_t>(q), pointer<float>(absmax),
                                     stream_of(stream));
           });
    define(m, "int8_clear_columns",
           [](std::int64_t device, Address stream, Address outliers, std::int64_t rows, std::int64_t width, Address q) {
               const DeviceGuard guard(static_cast<int>(device));
               int8_clear_columns(pointer<const std::uint8_t>(outliers), rows, width, pointer<std::int8_t>(q),
                                  stream_of(stream));
           });
    define(
        m, "int8_list_columns",
        [](std::int64_t device, Address stream, Address outliers, std::int64_t width, Address columns, Address count) {
            const DeviceGuard guard(static_cast<int>(device));
            int8_list_columns(pointer<const std::uint8_t>(outliers), width, pointer<std::int64_t>(columns),
                              pointer<std::int64_t>(count), stream_of(stream));
        });
    define(m, "int8_vectorwise_dequant",
           [](std::int64_t device, Address stream, Address A, Address stats, std::int64_t rows, std::int64_t width,
              Address out) {
               const DeviceGuard guard(static_cast<int>(device));
               int8_vectorwise_dequant(pointer<const std::int8_t>(A), pointer<const float>(stats), rows, width,
                                       pointer<float>(out), stream_of(stream));
           });
    define(m, "int8_mm",
           [](std::int64_t device, Address stream, Address A, Address B, std::int64_t M, std::int64_t N, std::int64_t K,
              Address out) {
               const DeviceGuard guard(static_cast<int>(device));
               int8_mm(pointer<const std::int8_t>(A), pointer<const std::int8_t>(B), M, N, K,
                       pointer<std::int32_t>(out), stream_of(stream));
           });
    // No bias: address 0, and any dtype. No outliers: A is 0.
    define(m, "int8_mm_dequant",
           [](std::int64_t device, Address stream, Address sums, Address row_stats, Address col_stats, Address bias,
              std::string_view bias_dtype, std::int64_t M, std::int64_t N, Address A, Address weight, Address columns,
              Address count, std::int64_t K, bool rounded, std::string_view dtype, Address out) {
               const DeviceGuard guard(static_cast<int>(device));
               const Outliers outliers{pointer<const void>(A),
                                       pointer<const std::int8_t>(weight),
                                       pointer<const std::int64_t>(columns),
                                       pointer<const std::int64_t>(count),
                                       K,
                                       rounded};
               int8_mm_dequant(pointer<const std::int32_t>(sums), pointer<const float>(row_stats),
                               pointer<const float>(col_stats), pointer<const void>(bias), dtype_of(bias_dtype), M, N,
                               A == 0 ? nullptr : &outliers, dtype_of(dtype), pointer<void>(out), stream_of(stream));
           });
}

}  // namespace bnb_core
