#include "dequantize_blockwise.h"

#include <algorithm>
#include <array>
#include <limits>

#include "dtype.h"

namespace bnb_core {
namespace {

using Code = std::array<float, 256>;

Code padded(const float* code, std::int64_t size) {
    Code table;
    table.fill(std::numeric_limits<float>::quiet_NaN());
    std::copy_n(code, std::min<std::int64_t>(size, table.size()), table.begin());
    return table;
}

template <class T>
void dequantize(const std::uint8_t* A, const float* absmax, const Code& code, std::int64_t blocksize, std::int64_t n,
                T* out) {
    for (std::int64_t count; n > 0; A += count, out += count, n -= count) {
        count = std::min(blocksize, n);
        const float scale = *absmax++;
        for (std::int64_t i = 0; i < count; ++i) out[i] = from_float<T>(code[A[i]] * scale);
    }
}

}  // namespace

void dequantize_blockwise(const std::uint8_t* A, const float* absmax, const float* code, std::int64_t code_size,
                          std::int64_t blocksize, std::int64_t n, std::string_view dtype, void* out) {
    const Code table = padded(code, code_size);
    visit_float(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        dequantize(A, absmax, table, blocksize, n, static_cast<T*>(out));
    });
}

}  // namespace bnb_core
