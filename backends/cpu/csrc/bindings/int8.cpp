#include <memory>

#include "bindings.h"

namespace bnb_core {
namespace {

// A tensor that may be missing has address 0, and then any dtype.
DType optional_dtype(Address address, std::string_view name) { return address == 0 ? DType::float32 : dtype_of(name); }

// Memory for one call.
struct Work {
    explicit Work(std::int64_t size) : memory(new char[static_cast<std::size_t>(size)]), scratch{memory.get(), size} {}

    std::unique_ptr<char[]> memory;
    Scratch scratch;
};

}  // namespace

void bind_int8(py::module_& m, const Kernels& kernels) {
    define(m, "int8_vectorwise_quant",
           [&kernels](Address A, std::string_view dtype, std::int64_t rows, std::int64_t K, double threshold, Address q,
                      Address absmax, Address outliers, int threads) {
               kernels.int8_vectorwise_quant(pointer<const void>(A), dtype_of(dtype), rows, K, threshold,
                                             pointer<std::int8_t>(q), pointer<float>(absmax),
                                             pointer<std::uint8_t>(outliers), threads);
           });
    define(m, "int8_double_quant",
           [&kernels](Address A, std::string_view dtype, std::int64_t rows, std::int64_t K, double threshold,
                      Address q_row, Address q_col, Address row_absmax, Address col_absmax, Address outliers,
                      int threads) {
               const std::unique_ptr<float[]> inverse(new float[static_cast<std::size_t>(K)]);
               kernels.int8_double_quant(pointer<const void>(A), dtype_of(dtype), rows, K, threshold,
                                         pointer<std::int8_t>(q_row), pointer<std::int8_t>(q_col),
                                         pointer<float>(row_absmax), pointer<float>(col_absmax),
                                         pointer<std::uint8_t>(outliers), inverse.get(), threads);
           });
    define(m, "int8_vectorwise_dequant",
           [&kernels](Address A, Address stats, std::int64_t rows, std::int64_t K, Address out, int threads) {
               kernels.int8_vectorwise_dequant(pointer<const std::int8_t>(A), pointer<const float>(stats), rows, K,
                                               pointer<float>(out), threads);
           });
    define(
        m, "int8_mm",
        [&kernels](Address A, Address B, std::int64_t rows, std::int64_t N, std::int64_t K, Address out, int threads) {
            const Work work(scratch_size(rows, K, 0));
            kernels.int8_mm(pointer<const std::int8_t>(A), pointer<const std::int8_t>(B), rows, N, K,
                            pointer<std::int32_t>(out), work.scratch, threads);
        });
    define(m, "int8_mm_dequant",
           [&kernels](Address A, Address row_stats, Address col_stats, Address bias, std::string_view bias_dtype,
                      std::int64_t rows, std::int64_t N, std::string_view dtype, Address out, int threads) {
               kernels.int8_mm_dequant(pointer<const std::int32_t>(A), pointer<const float>(row_stats),
                                       pointer<const float>(col_stats), pointer<const void>(bias),
                                       optional_dtype(bias, bias_dtype), rows, N, dtype_of(dtype), pointer<void>(out),
                                       threads);
           });
    define(m, "int8_scaled_mm",
           [&kernels](Address A, Address B, std::int64_t rows, std::int64_t N, std::int64_t K, Address row_stats,
                      Address col_stats, Address bias, std::string_view bias_dtype, Address values, Address columns,
                      std::int64_t count, std::string_view dtype, Address out, int threads) {
               const Work work(scratch_size(rows, K, count));
               kernels.int8_scaled_mm(pointer<const std::int8_t>(A), pointer<const std::int8_t>(B), rows, N, K,
                                      pointer<const float>(row_stats), pointer<const float>(col_stats),
                                      pointer<const void>(bias), optional_dtype(bias, bias_dtype),
                                      pointer<const void>(values), pointer<const std::int64_t>(columns), count,
                                      dtype_of(dtype), pointer<void>(out), work.scratch, threads);
           });
    define(
        m, "int8_linear",
        [&kernels](Address A, std::string_view dtype, std::int64_t rows, std::int64_t N, std::int64_t K, Address CB,
                   Address SCB, Address bias, std::string_view bias_dtype, double threshold, Address out, int threads) {
            const Work work(scratch_size(rows, K, threshold > 0 ? K : 0));
            kernels.int8_linear(pointer<const void>(A), dtype_of(dtype), rows, N, K, pointer<const std::int8_t>(CB),
                                pointer<const float>(SCB), pointer<const void>(bias), optional_dtype(bias, bias_dtype),
                                threshold, pointer<void>(out), work.scratch, threads);
        });
}

}  // namespace bnb_core
