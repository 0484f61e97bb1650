#include "levels.h"

namespace bnb_core {

// BNB_LEVELS is X(level) for each level of the build.
#define X(level)              \
    namespace level {         \
    const Kernels& kernels(); \
    }
BNB_LEVELS
#undef X

namespace {

// __builtin_cpu_supports asks the operating system too whether it keeps the wide registers.
#if defined(__x86_64__)
#define BNB_REQUIRE(feature) \
    if (!__builtin_cpu_supports(feature)) missing += missing.empty() ? feature : ", " feature
#endif

std::string missing_for([[maybe_unused]] const std::string& level) {
    std::string missing;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool is_avx512 = level == "avx512" || level == "avx512vnni";
    if (level == "avx2" || is_avx512) {
        BNB_REQUIRE("avx2");
        BNB_REQUIRE("fma");
        BNB_REQUIRE("f16c");
    }
    if (is_avx512) {
        BNB_REQUIRE("avx512f");
        BNB_REQUIRE("avx512bw");
        BNB_REQUIRE("avx512vl");
        BNB_REQUIRE("avx512dq");
    }
    if (level == "avx512vnni") BNB_REQUIRE("avx512vnni");
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
