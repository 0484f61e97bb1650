#include "pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bnb_core {

void expect_writes([[maybe_unused]] void* memory, [[maybe_unused]] std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::int64_t kFresh = std::int64_t{1} << 25;
    constexpr std::uintptr_t kLargePage = std::uintptr_t{1} << 21;
    if (bytes < kFresh) return;
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(memory);
    const std::uintptr_t begin = (address + kLargePage - 1) / kLargePage * kLargePage;
    const std::uintptr_t end = (address + static_cast<std::uintptr_t>(bytes)) / kLargePage * kLargePage;
    // Advice: where it is not taken, the pages are small.
    static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
#endif
}

}  // namespace bnb_core
