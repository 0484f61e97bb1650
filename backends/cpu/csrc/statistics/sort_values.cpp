#include "sort_values.h"

namespace bnb_core::BNB_LEVEL {

SortValues sort_values;

namespace {

constexpr int kBits = 11, kDigits = 3;  // of a key
constexpr std::uint32_t kMask = (1u << kBits) - 1, kSign = 1u << 31;

// Bits that ascend with the number.
BNB_INLINE std::uint32_t key_of(float x) {
    const std::uint32_t bits = x != x ? kNaNBits : bits_of(x);
    return bits & kSign ? ~bits : bits | kSign;
}

BNB_INLINE std::uint32_t bits_of_key(std::uint32_t key) { return key & kSign ? key & ~kSign : ~key; }

BNB_INLINE std::uint32_t digit_of(std::uint32_t key, int digit) { return key >> digit * kBits & kMask; }

}  // namespace

// Radix sort from the lowest digit; a digit that all keys share is passed over.
void sort_values(const void* A, DType dtype, std::int64_t n, std::uint32_t* sorted, std::uint32_t* spare) {
    std::int64_t starts[kDigits][kMask + 1] = {};
    visit(dtype, [&](auto type) {
        const auto* x = static_cast<const typename decltype(type)::type*>(A);
        for (std::int64_t i = 0; i < n; ++i) {
            sorted[i] = key_of(to_float(x[i]));
            for (int digit = 0; digit < kDigits; ++digit) ++starts[digit][digit_of(sorted[i], digit)];
        }
    });
    std::uint32_t *from = sorted, *to = spare;
    for (int digit = 0; digit < kDigits && n > 0; ++digit) {
        if (starts[digit][digit_of(from[0], digit)] == n) continue;
        std::int64_t start = 0;
        for (std::int64_t& count : starts[digit]) {
            const std::int64_t next = start + count;
            count = start;
            start = next;
        }
        for (std::int64_t i = 0; i < n; ++i) to[starts[digit][digit_of(from[i], digit)]++] = from[i];
        std::uint32_t* const last = from;
        from = to;
        to = last;
    }
    for (std::int64_t i = 0; i < n; ++i) sorted[i] = bits_of_key(from[i]);
}

}  // namespace bnb_core::BNB_LEVEL
