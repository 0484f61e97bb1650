// Products of a few rows with a part of a weight's rows, by tensor cores.
#pragma once

#include "../items.cuh"
#include "../warp.cuh"
#include "mma.cuh"
#include "product.cuh"

namespace bnb_core {

// The rows of the weight are rows of what tensor cores multiply, and the rows of A its columns. The warps of a block
// share the same rows, and divide k. As both sides may take the k of a product in any order, lane j of four has 16
// codes of a unit that stand side by side, and the elements of A that belong to them.
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 16, kColumns = 8;  // of a tile
constexpr int kSteps = kUnit / 16;
constexpr int kBytes = 256;

struct Codes {
    std::uint16_t of[16];  // the bits of the values in the dtype of A
};

template <class T>
Codes codes_of(const FourBit& type) {
    Codes codes;
    for (int i = 0; i < 16; ++i) codes.of[i] = convert<T>(type.values[i]).bits;
    return codes;
}

// A unit's codes and scales of the rows of a lane, g and g + 8 of each tile. Nested scales stay apart until they are
// used, so that nothing waits for their codes.
template <int HEIGHT>
struct Unit {
    Items<std::uint32_t, 2> codes[HEIGHT][2];
    float scales[HEIGHT][2];
    std::uint32_t nested[HEIGHT][2];
};

using Elements = Items<std::uint32_t, kUnit / 8>;  // of a row of A, those of a lane

// Values of the two codes of a byte, a copy for each lane.
struct Pairs {
    std::uint32_t of[kBytes][kWarp];

    __device__ void make(const Codes& codes) {
        for (int i = threadIdx.x; i < kBytes * kWarp; i += kThreads) {
            const int byte = i / kWarp;
            of[byte][i % kWarp] = codes.of[byte >> 4] | static_cast<std::uint32_t>(codes.of[byte & 15]) << 16;
        }
        __syncthreads();
    }

    // Of byte i of four; `lane` is the place of the lane's copy.
    __device__ __forceinline__ std::uint32_t at(std::uint32_t four, int i, std::uint32_t lane) const {
        constexpr int kRow = 7;  // log2 of the size of a row
        const std::uint32_t row = i == 0 ? four << kRow : four >> (8 * i - kRow);
        const std::uint32_t place = (row & ((kBytes - 1) << kRow)) | lane;
        return *reinterpret_cast<const std::uint32_t*>(reinterpret_cast<const char*>(of) + place);
    }
};

// What a block keeps in its shared memory.
struct Shared {
    Pairs pairs;
    float parts[2][kWarps][4 * kWarp];
    float codebook[kBytes];  // of nested scales

    __device__ void make(const Codes& codes, const Scales& scales) {
        static_assert(kBytes == kThreads);
        const int i = threadIdx.x;
        codebook[i] = i < scales.codebook_size ? scales.codebook[i] : __uint_as_float(kNaNBits);
        pairs.make(codes);
    }
};

// out[0:M, n0:n0 + 16 HEIGHT] of A [M, K] and weight `index` of those [N, K] in a row, M at most 8 WIDTH. DEPTH units
// are read ahead.
template <int HEIGHT, int WIDTH, int DEPTH, class T>
__device__ __forceinline__ void multiply_tile(Shared& shared, bool& shared_made, const T* A, int M,
                                              const Weight4bit& weight, std::int64_t index, const Codes& codes,
                                              const Bias& bias, T* out, std::int64_t n0) {
    const Scales& scales = weight.scales;
    const bool nested = scales.codes != nullptr;
    const float offset = nested ? *scales.offset : 0.0f;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, j = lane % 4;
    const std::int64_t N = weight.N, K = weight.K;
    const int step = static_cast<int>(kColumns * K);  // of K up to kMostK
    const int units = static_cast<int>(K / kUnit), share = (units + kWarps - 1) / kWarps, begin = warp * share;
    const int count = units - begin < share ? units - begin : share;
    const T* const x = A + g * K + static_cast<std::int64_t>(begin) * kUnit + j * (kUnit / 4);
    const std::uint8_t* packed[HEIGHT][2];
    std::uint32_t first[HEIGHT][2];
    for (int h = 0; h < HEIGHT; ++h) {
        for (int half = 0; half < 2; ++half) {
            const std::int64_t n = n0 + h * kRows + half * 8 + g;
            const std::int64_t unit = (index * N + (n < N ? n : N - 1)) * units + begin;
            packed[h][half] = weight.packed + unit * (kUnit / 2) + j * (kUnit / 8);
            first[h][half] = static_cast<std::uint32_t>(unit);
        }
    }
    const auto fetch = [&](int unit) {
        Unit<HEIGHT> found;
        for (int h = 0; h < HEIGHT; ++h) {
            for (int half = 0; half < 2; ++half) {
                found.codes[h][half] =
                    *reinterpret_cast<const Items<std::uint32_t, 2>*>(packed[h][half] + unit * (kUnit / 2));
                const std::uint32_t block = (first[h][half] + unit) >> (weight.blocksize_log2 - kUnitLog2);
                found.scales[h][half] = scales.absmax[nested ? block / Scales::kGroup : block];
                if (nested) found.nested[h][half] = scales.codes[block];
            }
        }
        return found;
    };
    const auto read_row = [&](int unit, int w) {
        if (w * kColumns + g >= M) return Elements{};
        return *reinterpret_cast<const Elements*>(x + (w * step + unit * kUnit));
    };
    float totals[HEIGHT][WIDTH][4] = {};
    const auto add = [&](const Unit<HEIGHT>& found, const auto& row) {
        std::uint32_t a[HEIGHT][kSteps][4];
        float factors[HEIGHT][2];
#pragma unroll
        for (int h = 0; h < HEIGHT; ++h) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                factors[h][half] = found.scales[h][half];
                if (nested) factors[h][half] = shared.codebook[found.nested[h][half]] * factors[h][half] + offset;
            }
#pragma unroll
            for (int s = 0; s < kSteps; ++s) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    a[h][s][i] = shared.pairs.at(found.codes[h][i % 2].of[s / 2], s % 2 * 2 + i / 2, lane * 4);
                }
            }
        }
#pragma unroll
        for (int w = 0; w < WIDTH; ++w) {
            const Elements b = row(w);
#pragma unroll
            for (int h = 0; h < HEIGHT; ++h) {
                float sums[4] = {};
#pragma unroll
                for (int s = 0; s < kSteps; ++s) mma<T>(sums, a[h][s], b.of[2 * s], b.of[2 * s + 1]);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    totals[h][w][i] = __fmaf_rn(sums[i], factors[h][i / 2], totals[h][w][i]);
                }
            }
        }
    };
    Unit<HEIGHT> next[DEPTH];
    Elements ahead[WIDTH] = {};  // of the next unit, where registers allow it
    constexpr bool kAhead = WIDTH <= 2;
#pragma unroll
    for (int i = 0; i < DEPTH; ++i) {
        if (i < count) next[i] = fetch(i);
    }
    if (kAhead && count > 0) {
        for (int w = 0; w < WIDTH; ++w) ahead[w] = read_row(0, w);
    }
    if (!shared_made) {  // while the first codes are on their way
        shared.make(codes, scales);
        shared_made = true;
    }
    for (int unit = 0; unit < count; unit += DEPTH) {
#pragma unroll
        for (int i = 0; i < DEPTH; ++i) {
            if (unit + i < count) {
                if constexpr (kAhead) {
                    Elements rows[WIDTH];
                    for (int w = 0; w < WIDTH; ++w) rows[w] = ahead[w];
                    if (unit + i + 1 < count) {
                        for (int w = 0; w < WIDTH; ++w) ahead[w] = read_row(unit + i + 1, w);
                    }
                    add(next[i], [&](int w) { return rows[w]; });
                } else {
                    add(next[i], [&](int w) { return read_row(unit + i, w); });
                }
                if (unit + i + DEPTH < count) next[i] = fetch(unit + i + DEPTH);
            }
        }
    }
    // Two tiles at a time, each element by a thread.
    constexpr int kTiles = HEIGHT * WIDTH;
#pragma unroll
    for (int first = 0; first < kTiles; first += 2) {
        __syncthreads();  // the parts before are read
#pragma unroll
        for (int tile = first; tile < first + 2 && tile < kTiles; ++tile) {
            for (int i = 0; i < 4; ++i)
                shared.parts[tile - first][warp][i * kWarp + lane] = totals[tile / WIDTH][tile % WIDTH][i];
        }
        __syncthreads();
        const int tile = first + threadIdx.x / (4 * kWarp), element = threadIdx.x % (4 * kWarp), i = element / kWarp;
        const std::int64_t row = tile % WIDTH * kColumns + 2 * j + i % 2;
        const std::int64_t n = n0 + tile / WIDTH * kRows + i / 2 * 8 + g;
        if (tile < kTiles && row < M && n < N) {
            float total = 0.0f;
            for (int w = 0; w < kWarps; ++w) total = __fadd_rn(total, shared.parts[tile - first][w][element]);
            out[row * N + n] = convert<T>(__fadd_rn(total, bias[index * N + n]));
        }
    }
}

}  // namespace bnb_core
