// Made from ops_registry/codebooks.py by `python ci/native_tables.py`.
#pragma once

#include <cstdint>

namespace bnb_core {

// values[c] is what code c stands for. A number with exactly p of the ascending boundaries below it has the code
// ascending[p]. Codes of equal values (the two zeros of FP4) are neighbours like others.
struct FourBit {
    float values[16];
    float boundaries[15];
    std::uint8_t ascending[16];
};

enum class QuantType { nf4, fp4 };

// clang-format off
constexpr FourBit kNf4 = {
    {-0x1p+0f, -0x1.647362p-1f, -0x1.0cd66p-1f, -0x1.94654p-2f,
     -0x1.23449ap-2f, -0x1.7a6a7ep-3f, -0x1.74f0e2p-4f, 0x0p+0f,
     0x1.45f5fep-4f, 0x1.4995c6p-3f, 0x1.f809bap-3f, 0x1.5a0674p-2f,
     0x1.c3497p-2f, 0x1.200f56p-1f, 0x1.722766p-1f, 0x1p+0f},
    {-0x1.b239bp-1f, -0x1.38a4ep-1f, -0x1.d709p-2f, -0x1.5bd4ecp-2f,
     -0x1.e079d8p-3f, -0x1.1a7178p-3f, -0x1.74f0e2p-5f, 0x1.45f5fep-5f,
     0x1.ec90c4p-4f, 0x1.a0cfcp-3f, 0x1.2b05a8p-2f, 0x1.8ea7f2p-2f,
     0x1.00da08p-1f, 0x1.491b5ep-1f, 0x1.b913b4p-1f},
    {0, 1, 2, 3,
     4, 5, 6, 7,
     8, 9, 10, 11,
     12, 13, 14, 15}};

constexpr FourBit kFp4 = {
    {0x0p+0f, 0x1.555556p-8f, 0x1.555556p-1f, 0x1p+0f,
     0x1.555556p-2f, 0x1p-1f, 0x1.555556p-3f, 0x1p-2f,
     0x0p+0f, -0x1.555556p-8f, -0x1.555556p-1f, -0x1p+0f,
     -0x1.555556p-2f, -0x1p-1f, -0x1.555556p-3f, -0x1p-2f},
    {-0x1.aaaaacp-1f, -0x1.2aaaacp-1f, -0x1.aaaaacp-2f, -0x1.2aaaacp-2f,
     -0x1.aaaaacp-3f, -0x1.6p-4f, -0x1.555556p-9f, 0x0p+0f,
     0x1.555556p-9f, 0x1.6p-4f, 0x1.aaaaacp-3f, 0x1.2aaaacp-2f,
     0x1.aaaaacp-2f, 0x1.2aaaacp-1f, 0x1.aaaaacp-1f},
    {11, 10, 13, 12,
     15, 14, 9, 0,
     8, 1, 6, 7,
     4, 5, 2, 3}};

// clang-format on

constexpr const FourBit& four_bit(QuantType type) { return type == QuantType::nf4 ? kNf4 : kFp4; }

}  // namespace bnb_core
