#include "../statistics/percentile_clipping.h"
#include "../statistics/quantiles.h"
#include "bindings.h"

namespace bnb_core {

void bind_statistics(py::module_& m) {
    m.attr("SQUARES_PART") = kSquaresPart;
    define(
        m, "percentile_clipping",
        [](std::int64_t device, Address stream, Address grad, std::string_view dtype, std::int64_t n, Address partials,
           Address history, std::int64_t slot, std::int64_t percentile, Address norm, Address clip, Address scale) {
            const DeviceGuard guard(static_cast<int>(device));
            percentile_clipping(pointer<const void>(grad), dtype_of(dtype), n, pointer<float>(partials),
                                pointer<float>(history), static_cast<int>(slot), static_cast<int>(percentile),
                                pointer<float>(norm), pointer<float>(clip), pointer<float>(scale), stream_of(stream));
        });
    define(m, "quantiles",
           [](std::int64_t device, Address stream, Address values, std::int64_t n, double offset, double spacing,
              std::int64_t count, Address out) {
               const DeviceGuard guard(static_cast<int>(device));
               quantiles(pointer<const float>(values), n, offset, spacing, count, pointer<float>(out),
                         stream_of(stream));
           });
}

}  // namespace bnb_core
