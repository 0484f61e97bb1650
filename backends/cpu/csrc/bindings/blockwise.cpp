#include "bindings.h"

namespace bnb_core {

void bind_blockwise(py::module_& m, const Kernels& kernels) {
    define(m, "quantize_blockwise",
           [&kernels](Address A, std::string_view dtype, Address code, std::int64_t code_size, std::int64_t blocksize,
                      std::int64_t n, Address q, Address absmax, int threads) {
               kernels.quantize_blockwise(pointer<const void>(A), dtype_of(dtype), pointer<const float>(code),
                                          code_size, blocksize, n, pointer<std::uint8_t>(q), pointer<float>(absmax),
                                          threads);
           });
    define(m, "dequantize_blockwise",
           [&kernels](Address A, Address absmax, Address code, std::int64_t code_size, std::int64_t blocksize,
                      std::int64_t n, std::string_view dtype, Address out, int threads) {
               kernels.dequantize_blockwise(pointer<const std::uint8_t>(A), pointer<const float>(absmax),
                                            pointer<const float>(code), code_size, blocksize, n, dtype_of(dtype),
                                            pointer<void>(out), threads);
           });
}

}  // namespace bnb_core
