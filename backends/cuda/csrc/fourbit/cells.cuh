// Finds the code nearest to a number of [-1, 1], exactly: the numbers are divided into cells with at most one boundary.
#pragma once

#include "values.cuh"

namespace bnb_core {

// Cell c holds the numbers t with c - 1 < 16 t <= c: zero is the last of its cell, as a boundary of FP4 wants it.
constexpr int kFirstCell = -16, kCells = 34;  // 1 and a rounding error is in the last

struct alignas(8) Cell {
    float boundary;
    std::uint32_t codes;  // of the numbers up to the boundary, and in the upper half of those above
};

struct Cells {
    Cell of[kCells];
};

inline Cells cells_of(const FourBit& type) {
    Cells cells;
    for (int i = 0; i < kCells; ++i) {
        const float end = static_cast<float>(kFirstCell + i) / 16.0f, begin = end - 1.0f / 16.0f;
        int position = 0;
        while (position < 15 && type.boundaries[position] <= begin) ++position;
        const bool divided = position < 15 && type.boundaries[position] < end;
        const std::uint32_t lower = type.ascending[position], upper = type.ascending[position + divided];
        cells.of[i] = {divided ? type.boundaries[position] : float_of(kInfinityBits), lower | upper << 16};
    }
    return cells;
}

// In the shared memory of a block, a copy for each lane.
struct Nearest {
    Cell of[kCells][kWarp];

    __device__ void make(const Cells& cells) {
        for (int i = threadIdx.x; i < kCells * kWarp; i += blockDim.x) of[i / kWarp][i % kWarp] = cells.of[i / kWarp];
        __syncthreads();
    }

    __device__ __forceinline__ unsigned code(float t) const {
        // The sum is rounded up to a whole number, which is in its lower bits.
        constexpr float kWhole = 0x1p23f - kFirstCell;
        const unsigned cell = __float_as_uint(__fmaf_ru(t, 16.0f, kWhole)) & 63u;
        const Cell found = of[cell][threadIdx.x % kWarp];
        return t > found.boundary ? found.codes >> 16 : found.codes & 0xFFFFu;
    }
};

}  // namespace bnb_core
