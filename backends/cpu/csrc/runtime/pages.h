#pragma once

#include <cstdint>

namespace bnb_core {

// To be called for memory that is about to be written whole. From 32 MiB on an allocator takes memory fresh from the
// system and gives it back at once, so that each page faults when it is first touched: with pages of 4 KiB most of the
// time of a dequantization (46 of 53 ms for 64 MiB). Asks the system for large pages there, where it has them.
void expect_writes(void* memory, std::int64_t bytes);

}  // namespace bnb_core
