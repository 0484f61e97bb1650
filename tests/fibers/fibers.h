// CUDA kernels on the CPU, for tests without a GPU: the threads of a block are fibers that one thread runs in turn.
// Blocks run one after the other. Of CUDA there is what the kernels use.
//
// A barrier that some threads never reach is an error, and so is a shuffle that not all lanes of a warp join. From one
// barrier of the block to the next its warps run one after the other, from the first or from the last, as is drawn
// anew (the same draws in every process): what lacks a barrier between warps comes out wrong in one of the two orders.
// A launch has a thread of its own, so that its shared memory is new: tables that a launch before made are not there.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../../backends/cuda/csrc/stream.h"
#include "native/dtype.h"

#define __global__
#define __device__
#define __grid_constant__
#define __shared__ static thread_local
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

inline thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace bnb_core {

namespace fibers {

constexpr int kWarp = 32;
constexpr std::size_t kStack = 1 << 16;

class Block {
  public:
    static Block*& current() {
        static thread_local Block* block = nullptr;
        return block;
    }

    Block(int threads, const std::function<void()>& body) : body_(body), fibers_(threads) {
        const int warps = (threads + kWarp - 1) / kWarp;
        slots_.resize(static_cast<std::size_t>(warps) * kWarp);
        for (std::size_t i = 0; i < fibers_.size(); ++i) prepare(fibers_[i].context, stack(i));
    }

    void run(std::minstd_rand& draw) {
        current() = this;
        const std::size_t size = fibers_.size(), warps = (size + kWarp - 1) / kWarp;
        do {
            const bool backwards = (draw() >> 16 & 1) != 0;
            for (std::size_t turn = 0; turn < warps; ++turn) {
                const std::size_t begin = (backwards ? warps - 1 - turn : turn) * kWarp;
                run_warp(begin, std::min(size, begin + kWarp), backwards);
            }
        } while (release(0, size, ForBlock));
        for (const Fiber& fiber : fibers_) {
            if (!fiber.done) throw std::runtime_error("fibers: not all threads reach a barrier");
        }
    }

    void wait_for_block() { wait(ForBlock); }

    // What each lane gives, seen by all of its warp.
    template <class T>
    const T* exchange(T value) {
        static_assert(sizeof(T) <= sizeof(Slot));
        const std::size_t mine = running_;
        std::memcpy(&slots_[mine], &value, sizeof value);
        wait(ForWarp);
        const std::size_t first = mine / kWarp * kWarp;
        T* seen = reinterpret_cast<T*>(fibers_[mine].seen);
        static_assert(sizeof(T) * kWarp <= sizeof(fibers_[mine].seen));
        for (int lane = 0; lane < kWarp; ++lane) std::memcpy(seen + lane, &slots_[first + lane], sizeof(T));
        wait(ForWarp);
        return seen;
    }

  private:
    enum Wait { Nothing, ForBlock, ForWarp };
    struct Slot {
        alignas(16) char bytes[32];
    };
    struct Fiber {
        ucontext_t context;
        Wait waits = Nothing;
        bool done = false;
        alignas(16) char seen[32 * kWarp];
    };

    void prepare(ucontext_t& context, char* stack) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = kStack;
        context.uc_link = &scheduler_;
        makecontext(&context, &Block::enter, 0);
    }

    // Kept for the blocks to come.
    static char* stack(std::size_t i) {
        static thread_local std::vector<std::unique_ptr<char[]>> stacks;
        while (stacks.size() <= i) stacks.push_back(std::make_unique<char[]>(kStack));
        return stacks[i].get();
    }

    static void enter() {
        Block& block = *current();
        block.body_();
        block.fibers_[block.running_].done = true;
    }

    void wait(Wait what) {
        const std::size_t mine = running_;
        fibers_[mine].waits = what;
        swapcontext(&fibers_[mine].context, &scheduler_);
    }

    // As far as all of its lanes get without other warps.
    void run_warp(std::size_t begin, std::size_t end, bool backwards) {
        do {
            for (std::size_t turn = 0; turn < end - begin; ++turn) {
                const std::size_t i = backwards ? end - 1 - turn : begin + turn;
                if (fibers_[i].done || fibers_[i].waits != Nothing) continue;
                running_ = i;
                threadIdx.x = static_cast<unsigned>(i);
                swapcontext(&scheduler_, &fibers_[i].context);
            }
        } while (release(begin, end, ForWarp));
    }

    // Lets those go on all of whose like wait.
    bool release(std::size_t begin, std::size_t end, Wait what) {
        bool any = false, all = true;
        for (std::size_t i = begin; i < end; ++i) {
            if (fibers_[i].done) {
                all = false;
            } else if (fibers_[i].waits == what) {
                any = true;
            } else {
                return false;
            }
        }
        if (any && !all && what == ForWarp) throw std::runtime_error("fibers: not all lanes join a shuffle");
        for (std::size_t i = begin; i < end; ++i) fibers_[i].waits = Nothing;
        return any;
    }

    const std::function<void()>& body_;
    std::vector<Fiber> fibers_;
    std::vector<Slot> slots_;
    ucontext_t scheduler_;
    std::size_t running_ = 0;
};

inline std::atomic<unsigned> launches = 0;

inline int lane() { return static_cast<int>(threadIdx.x % kWarp); }

// Element i of those that stand in 32 bits each.
template <class T>
float element(const std::uint32_t* words, int i) {
    return to_float(T{static_cast<std::uint16_t>(words[i / 2] >> (i % 2 * 16))});
}

// mma.sync.aligned.m16n8k16.row.col: sums[16, 8] += a[16, 16] b[16, 8] of a 16-bit T.
template <class T>
void mma(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    struct Parts {
        std::uint32_t a[4], b[2];
    };
    const Parts* lanes = Block::current()->exchange(Parts{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    for (int i = 0; i < 4; ++i) {
        const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const int of_four = k % 8 / 2, upper = k / 8;
            const Parts& left = lanes[row % 8 * 4 + of_four];
            const Parts& right = lanes[column * 4 + of_four];
            sums[i] += element<T>(left.a, (2 * upper + row / 8) * 2 + k % 2) * element<T>(right.b, upper * 2 + k % 2);
        }
    }
}

}  // namespace fibers

struct DeviceGuard {
    explicit DeviceGuard(int) {}
};

inline int architecture() { return 80; }

// Few, so that blocks work on several parts.
inline std::int64_t resident(std::int64_t parts, std::int64_t = 8) { return std::min<std::int64_t>(parts, 2); }

template <class... Parameters, class... Arguments>
void launch(const char*, void (*kernel)(Parameters...), std::int64_t blocks, int threads, Stream, Arguments... args) {
    const std::function<void()> body = [&] { kernel(static_cast<Parameters>(args)...); };
    std::exception_ptr error;
    const auto run = [&, draw = std::minstd_rand(++fibers::launches)]() mutable {
        gridDim = {static_cast<unsigned>(blocks), 1, 1};
        blockDim = {static_cast<unsigned>(threads), 1, 1};
        try {
            for (std::int64_t i = 0; i < blocks; ++i) {
                blockIdx = {static_cast<unsigned>(i), 0, 0};
                fibers::Block(threads, body).run(draw);
            }
        } catch (...) {
            error = std::current_exception();
        }
    };
    std::thread(run).join();
    if (error) std::rethrow_exception(error);
}

}  // namespace bnb_core

inline void __syncthreads() { bnb_core::fibers::Block::current()->wait_for_block(); }

template <class T>
T __shfl_sync(unsigned, T value, int from) {
    return bnb_core::fibers::Block::current()->exchange(value)[from % 32];
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    const int lane = bnb_core::fibers::lane();
    return bnb_core::fibers::Block::current()->exchange(value)[lane ^ mask];
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned distance) {
    const int from = bnb_core::fibers::lane() - static_cast<int>(distance);
    const T* all = bnb_core::fibers::Block::current()->exchange(value);
    return from >= 0 ? all[from] : value;
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    const int* all = bnb_core::fibers::Block::current()->exchange(predicate);
    unsigned found = 0;
    for (int i = 0; i < 32; ++i) found |= static_cast<unsigned>(all[i] != 0) << i;
    return found;
}
inline int __syncthreads_or(int predicate) {
    __shared__ int found;
    found = 0;
    __syncthreads();
    if (predicate) found = 1;
    __syncthreads();
    const int result = found;
    __syncthreads();
    return result;
}

inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmaf_ru(float a, float b, float c) {
    const double product = static_cast<double>(a) * b, sum = product + c;  // the product is exact
    const double part = sum - product, rest = (product - (sum - part)) + (c - part);
    const float nearest = std::fma(a, b, c);
    return (sum - nearest) + rest > 0 ? std::nextafter(nearest, std::numeric_limits<float>::infinity()) : nearest;
}
inline int __float2int_rn(float a) { return static_cast<int>(std::nearbyint(a)); }
inline std::uint32_t __float_as_uint(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += static_cast<std::int8_t>(a >> i) * static_cast<std::int8_t>(b >> i);
    return c;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
    unsigned found = 0;
    for (int i = 0; i < 4; ++i) {
        found |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 255u) << (8 * i);
    }
    return found;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int atomicMax(int* place, int value) { return std::exchange(*place, std::max(*place, value)); }
