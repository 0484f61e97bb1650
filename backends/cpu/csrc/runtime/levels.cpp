#include "levels.h"

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace bnb_core {

// BNB_LEVELS is X(level) for each level of the build.
#define X(level)              \
    namespace level {         \
    const Kernels& kernels(); \
    }
BNB_LEVELS
#undef X

namespace {

#if defined(__x86_64__)

constexpr std::uint64_t kYmm = 0x06, kZmm = 0xe6;  // of XCR0: the registers that the operating system keeps

// Asked of the CPU itself: the answers of __builtin_cpu_supports come from the compiler's library, and that of Zig's
// clang has none.
struct Feature {
    const char* name;
    unsigned leaf, word, bit;  // of CPUID; words 1 and 2 are EBX and ECX
    std::uint64_t registers;
};

constexpr Feature kAvx2[] = {{"avx2", 7, 1, 5, kYmm}, {"fma", 1, 2, 12, kYmm}, {"f16c", 1, 2, 29, kYmm}};
constexpr Feature kAvx512[] = {{"avx512f", 7, 1, 16, kZmm},
                               {"avx512bw", 7, 1, 30, kZmm},
                               {"avx512vl", 7, 1, 31, kZmm},
                               {"avx512dq", 7, 1, 17, kZmm}};
constexpr Feature kVnni[] = {{"avx512vnni", 7, 2, 11, kZmm}};

std::uint64_t kept_registers() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned osxsave = 1u << 27;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & osxsave)) return 0;
    asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (static_cast<std::uint64_t>(d) << 32) | a;
}

bool is_there(const Feature& feature) {
    unsigned words[4] = {};
    return (kept_registers() & feature.registers) == feature.registers &&
           __get_cpuid_count(feature.leaf, 0, &words[0], &words[1], &words[2], &words[3]) &&
           (words[feature.word] >> feature.bit & 1) != 0;
}

template <std::size_t N>
void require(const Feature (&features)[N], std::string& missing) {
    for (const Feature& feature : features) {
        if (!is_there(feature)) missing += (missing.empty() ? "" : ", ") + std::string(feature.name);
    }
}

#endif

std::string missing_for([[maybe_unused]] const std::string& level) {
    std::string missing;
#if defined(__x86_64__)
    const bool is_avx512 = level == "avx512" || level == "avx512vnni";
    if (level == "avx2" || is_avx512) require(kAvx2, missing);
    if (is_avx512) require(kAvx512, missing);
    if (level == "avx512vnni") require(kVnni, missing);
#endif
    return missing;
}

}  // namespace

std::vector<Level> levels() {
    std::vector<Level> found;
#define X(level) found.push_back({#level, level::kernels, missing_for(#level)});
    BNB_LEVELS
#undef X
    return found;
}

}  // namespace bnb_core
