// Code tables of up to 256 values in the shared memory of a block.
#pragma once

#include "../items.cuh"
#include "../warp.cuh"
#include "native/dtype.h"

namespace bnb_core {

constexpr int kEntries = 256;

// Codes of elements side by side, four to a word.
template <int COUNT>
struct Coded {
    static_assert(COUNT % 4 == 0);
    Items<std::uint32_t, COUNT / 4> fours;

    // From the last byte of each word.
    __device__ __forceinline__ explicit Coded(const std::uint32_t (&words)[COUNT]) {
        for (int i = 0; i < COUNT; i += 4) {
            const std::uint32_t lower = __byte_perm(words[i], words[i + 1], 0x0040);
            fours.of[i / 4] = __byte_perm(lower, __byte_perm(words[i + 2], words[i + 3], 0x0040), 0x5410);
        }
    }
    __device__ __forceinline__ std::uint8_t operator[](int i) const {
        return static_cast<std::uint8_t>(fours.of[i / 4] >> (8 * (i % 4)));
    }
    // All of them, aligned.
    __device__ __forceinline__ void write(std::uint8_t* to) const { *reinterpret_cast<decltype(fours)*>(to) = fours; }
};

// Finds the value nearest to a number of [-1, 1], exactly: boundaries are the midpoints of neighbours, rounded to fp32,
// and a number on one belongs to the value below. The sign and the upper bits of a number are its cell. Where no cell
// has more than one boundary, as in all maps that are made here, its word says everything: one access finds a code.
// NEGATIVE: whether a table may have boundaries below zero to be such a map.
template <bool NEGATIVE>
struct Encoder {
    static constexpr int kLow = 16;                                       // 128 cells from a power of 2 to the next
    static constexpr std::uint32_t kFirst = (127u - 23u) << (23 - kLow);  // zero up to 2^-23 are in one with it
    static constexpr std::uint32_t kLast = 127u << (23 - kLow);           // of 1
    static constexpr int kCells = static_cast<int>(kLast - kFirst) + 1, kSides = NEGATIVE ? 2 : 1;

    // The lower bits of the magnitude up to which a number of the cell has the code in the last byte; others have that
    // in the byte before it.
    std::uint32_t words[kSides * kCells];
    float boundaries[kEntries];  // ascending, Inf after the last
    std::uint8_t codes[kEntries];
    bool by_words;

    // NaN gets the code of 0.
    template <int COUNT>
    __device__ __forceinline__ Coded<COUNT> nearest(const float (&t)[COUNT]) const {
        if (by_words) return nearest_by_words(t);
        std::uint32_t found[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; ++i) found[i] = codes[below(t[i] == t[i] ? t[i] : 0.0f)];
        return Coded<COUNT>(found);
    }

    // The same, where by_words.
    template <int COUNT>
    __device__ __forceinline__ Coded<COUNT> nearest_by_words(const float (&t)[COUNT]) const {
        std::uint32_t found[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const float magnitude = fmaxf(NEGATIVE ? fabsf(t[i]) : t[i], 0x1p-23f);
            const std::uint32_t bits = __float_as_uint(magnitude);
            const std::uint32_t side = NEGATIVE ? __float_as_uint(t[i]) >> 31 : 0;
            const std::uint32_t word = words[(bits >> kLow) * kSides + side - kFirst * kSides];
            found[i] = bits << (32 - kLow) > word ? word >> 8 : word;
        }
        return Coded<COUNT>(found);
    }

    // By all threads of a block, from `size` values.
    __device__ void make(const float* code, int size) {
        static_assert(sizeof(words) >= 2 * kEntries * sizeof(float));
        float* values = reinterpret_cast<float*>(words);  // before there are any
        for (int j = threadIdx.x; j < kEntries; j += blockDim.x) {
            boundaries[j] = __uint_as_float(kInfinityBits);
            codes[j] = static_cast<std::uint8_t>(j);
            values[j] = j < size ? code[j] : 0.0f;
        }
        __syncthreads();
        bool rising = true;
        for (int j = threadIdx.x; j + 1 < size; j += blockDim.x) rising = rising && values[j] < values[j + 1];
        if (__syncthreads_or(!rising)) values = sorted(size, values);
        bool few = true;
        for (int j = threadIdx.x; j + 1 < size; j += blockDim.x) {
            boundaries[j] = __fmul_rn(__fadd_rn(values[j], values[j + 1]), 0.5f);
            few = few && (NEGATIVE ? fabsf(boundaries[j]) : boundaries[j]) >= 0x1p-23f;
        }
        __syncthreads();
        // Each thread makes the words of some neighbours, upwards.
        const int each = (kSides * kCells + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
        const int first = static_cast<int>(threadIdx.x) * each;
        int position = first > 0 ? below(end_of(first - 1)) : 0;
        for (int cell = first; cell < first + each && cell < kSides * kCells; ++cell) {
            const float boundary = boundaries[position], end = end_of(cell);
            const bool divided = boundary < end;
            const std::uint32_t lower = codes[position];
            position += divided;
            const std::uint32_t upper = codes[position];
            const int side = NEGATIVE && cell < kCells, place = place_of(cell);
            words[place * kSides + side] = side == 0 ? word(__float_as_uint(boundary), lower, upper, divided)
                                                     : negative_word(boundary, place, lower, upper, divided);
            while (boundaries[position] < end) {
                few = false;
                ++position;
            }
        }
        const bool all_few = !__syncthreads_or(!few);
        if (threadIdx.x == 0) by_words = all_few;
        __syncthreads();
    }

  private:
    // Boundaries that are less than t.
    __device__ __forceinline__ int below(float t) const {
        int position = 0;
        for (int step = kEntries / 2; step > 0; step /= 2) {
            if (boundaries[position + step - 1] < t) position += step;
        }
        return position;
    }

    // Cells are counted upwards from that of -1, those of each sign are placed by magnitude.
    static __device__ __forceinline__ int place_of(int cell) {
        return !NEGATIVE ? cell : cell < kCells ? kCells - 1 - cell : cell - kCells;
    }

    // A number above all of a cell and of those before it, and of no other.
    static __device__ __forceinline__ float end_of(int cell) {
        const std::uint32_t upper = kFirst + static_cast<std::uint32_t>(place_of(cell));
        if (NEGATIVE && cell < kCells) {
            return upper == kFirst ? 0.0f : __uint_as_float(0x80000000u | ((upper << kLow) - 1u));
        }
        return __uint_as_float(upper == kLast ? kInfinityBits : (upper + 1u) << kLow);
    }

    static __device__ __forceinline__ std::uint32_t word(std::uint32_t last, std::uint32_t code, std::uint32_t beyond,
                                                         bool divided) {
        return divided ? last << (32 - kLow) | beyond << 8 | code : code << 8 | code;
    }

    // Magnitudes fall: that of the boundary itself already belongs to the lower code.
    static __device__ __forceinline__ std::uint32_t negative_word(float boundary, int place, std::uint32_t lower,
                                                                  std::uint32_t upper, bool divided) {
        const std::uint32_t bits = __float_as_uint(boundary) & 0x7FFFFFFFu;
        const bool all = bits <= (kFirst + static_cast<std::uint32_t>(place)) << kLow;
        return word(bits - 1u, all ? lower : upper, lower, divided && !all);
    }

    // The values in ascending order, and their codes; of equal ones the lowest. Those that are no number come last.
    __device__ float* sorted(int size, const float* values) {
        float* result = reinterpret_cast<float*>(words) + kEntries;
        for (int i = threadIdx.x; i < size; i += blockDim.x) {
            int rank = 0, lowest = i;
            for (int j = size - 1; j >= 0; --j) {
                const bool equal = values[j] == values[i] || (values[j] != values[j] && values[i] != values[i]);
                const bool before = values[j] < values[i] || (values[j] == values[j] && values[i] != values[i]);
                rank += before || (equal && j < i);
                lowest = equal ? j : lowest;
            }
            result[rank] = values[i];
            codes[rank] = static_cast<std::uint8_t>(lowest);
        }
        __syncthreads();
        return result;
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
