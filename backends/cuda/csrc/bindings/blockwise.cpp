#include "../blockwise/dequantize_blockwise.h"
#include "../blockwise/quantize_blockwise.h"
#include "bindings.h"

namespace bnb_core {

void bind_blockwise(py::module_& m) {
    define(m, "quantize_blockwise",
           [](std::int64_t device, Address stream, Address A, std::string_view dtype, Address code,
              std::int64_t code_size, std::int64_t blocksize, std::int64_t n, Address q, Address absmax) {
               const DeviceGuard guard(static_cast<int>(device));
               quantize_blockwise(pointer<const void>(A), dtype_of(dtype), pointer<const float>(code), code_size,
                                  blocksize, n, pointer<std::uint8_t>(q), pointer<float>(absmax), stream_of(stream));
           });
    define(m, "dequantize_blockwise",
           [](std::int64_t device, Address stream, Address A, Address absmax, Address code, std::int64_t code_size,
              std::int64_t blocksize, std::int64_t n, std::string_view dtype, Address out) {
               const DeviceGuard guard(static_cast<int>(device));
               dequantize_blockwise(pointer<const std::uint8_t>(A), pointer<const float>(absmax),
                                    pointer<const float>(code), code_size, blocksize, n, dtype_of(dtype),
                                    pointer<void>(out), stream_of(stream));
           });
}

}  // namespace bnb_core
