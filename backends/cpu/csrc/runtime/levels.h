// The instruction sets that kernels are compiled for, and which of them this CPU has.
#pragma once

#include <string>
#include <vector>

#include "../kernels.h"

namespace bnb_core {

struct Level {
    const char* name;
    const Kernels& (*kernels)();
    std::string missing;  // what the CPU lacks of it; empty where it runs
};

// All levels of this build, best first, `scalar` last.
std::vector<Level> levels();

}  // namespace bnb_core
