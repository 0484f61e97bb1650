// Code tables of up to 256 values in the shared memory of a block.
#pragma once

#include "../warp.cuh"
#include "native/dtype.h"

namespace bnb_core {

constexpr int kEntries = 256;

// Finds the value nearest to a number, exactly, for any table: boundaries are the midpoints of neighbours, rounded to
// fp32, and a number on one belongs to the value below. The upper bits of a number say where to begin; it is none
// beyond -1 and 1.
struct Encoder {
    float boundaries[kEntries];  // ascending, Inf after the last
    std::uint8_t codes[kEntries];

    static constexpr int kShift = 17;                                       // 64 cells from a power of 2 to the next
    static constexpr std::uint32_t kFirst = (127u - 23u) << (23 - kShift);  // below 2^-23 one cell holds all
    static constexpr std::uint32_t kLast = 127u << (23 - kShift);           // and one from 1 on
    static constexpr int kCells = static_cast<int>(kLast - kFirst) + 1;
    std::uint8_t begin[2 * kCells];  // of each sign: the boundaries that are below all numbers of a cell

    int most;        // boundaries within a cell
    bool ascending;  // codes are positions

    // Of a number from -1 to 1.
    static __device__ __forceinline__ int cell(float t) {
        const std::uint32_t upper = __float_as_uint(fmaxf(fabsf(t), 0x1p-23f)) >> kShift;
        return static_cast<int>(upper) + (__float_as_uint(t) >> 31 ? kCells : 0) - static_cast<int>(kFirst);
    }

    // The smallest number of a cell, -Inf for the last of the negative ones.
    static __device__ __forceinline__ float lowest(int cell) {
        if (cell < kCells) return cell == 0 ? 0.0f : __uint_as_float((kFirst + cell) << kShift);
        const std::uint32_t upper = kFirst + (cell - kCells) + 1;
        return __uint_as_float(0x80000000u | (upper > kLast ? kInfinityBits : (upper << kShift) - 1u));
    }

    __device__ __forceinline__ std::uint8_t nearest(float t) const {
        int position = begin[cell(t)];
        while (boundaries[position] < t) ++position;
        return codes[position];
    }

    // Of several numbers, whose lookups are under way together where few boundaries fall into each cell.
    template <int COUNT>
    __device__ __forceinline__ void nearest(const float (&t)[COUNT], std::uint8_t (&found)[COUNT]) const {
        int position[COUNT];
        for (int i = 0; i < COUNT; ++i) position[i] = begin[cell(t[i])];
        if (most <= 2) {
            for (int i = 0; i < COUNT; ++i) position[i] += boundaries[position[i]] < t[i];
            if (most == 2) {
                for (int i = 0; i < COUNT; ++i) position[i] += boundaries[position[i]] < t[i];
            }
        } else {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                while (boundaries[position[i]] < t[i]) ++position[i];
            }
        }
        for (int i = 0; i < COUNT; ++i) found[i] = static_cast<std::uint8_t>(position[i]);
        if (ascending) return;
        for (int i = 0; i < COUNT; ++i) found[i] = codes[position[i]];
    }

    // By all threads of a block, from `size` values.
    __device__ void make(const float* code, int size) {
        __shared__ float values[kEntries];
        const int i = threadIdx.x;
        for (int j = i; j < kEntries; j += blockDim.x) {
            boundaries[j] = __uint_as_float(kInfinityBits);
            codes[j] = static_cast<std::uint8_t>(j);
            values[j] = j < size ? code[j] : 0.0f;
        }
        __syncthreads();
        bool rising = true;
        for (int j = i; j + 1 < size; j += blockDim.x) rising = rising && values[j] < values[j + 1];
        const bool in_order = !__syncthreads_or(!rising);
        if (!in_order) sort(size, values);
        for (int j = i; j + 1 < size; j += blockDim.x) {
            boundaries[j] = __fmul_rn(__fadd_rn(values[j], values[j + 1]), 0.5f);
        }
        __syncthreads();
#pragma unroll 4  // searches under way together
        for (int j = i; j < 2 * kCells; j += blockDim.x) {
            const float from = lowest(j);
            int position = 0;
            for (int step = kEntries / 2; step > 0; step /= 2) {
                if (boundaries[position + step - 1] < from) position += step;
            }
            begin[j] = static_cast<std::uint8_t>(position);
        }
        if (i == 0) {
            most = 0;
            ascending = in_order;
        }
        __syncthreads();
        int between = 0;
        for (int j = i; j < 2 * kCells; j += blockDim.x) {
            // Where the numbers end that a cell is for: those of the one above it begin there.
            const int end = j == kCells - 1 ? size - 1 : begin[j < kCells ? j + 1 : j == kCells ? 0 : j - 1];
            between = end - begin[j] > between ? end - begin[j] : between;
        }
        atomicMax(&most, between);
        __syncthreads();
    }

  private:
    // Ascending values, and their codes; of equal ones the lowest. Those that are no number come last.
    __device__ void sort(int size, float* values) {
        __shared__ float sorted[kEntries];
        for (int i = threadIdx.x; i < size; i += blockDim.x) {
            int rank = 0, lowest = i;
            for (int j = size - 1; j >= 0; --j) {
                const bool equal = values[j] == values[i] || (values[j] != values[j] && values[i] != values[i]);
                const bool before = values[j] < values[i] || (values[j] == values[j] && values[i] != values[i]);
                rank += before || (equal && j < i);
                lowest = equal ? j : lowest;
            }
            sorted[rank] = values[i];
            codes[rank] = static_cast<std::uint8_t>(lowest);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < size; i += blockDim.x) values[i] = sorted[i];
        __syncthreads();
    }
};

// Values of codes, NaN past the end of a table.
struct Decoder {
    float values[kEntries];

    __device__ void make(const float* code, int size) {
        for (int i = threadIdx.x; i < kEntries; i += blockDim.x) {
            values[i] = i < size ? code[i] : __uint_as_float(kNaNBits);
        }
        __syncthreads();
    }
};

}  // namespace bnb_core
