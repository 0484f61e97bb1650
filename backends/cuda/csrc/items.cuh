// Elements that a thread reads and writes side by side, in accesses of up to 16 bytes.
#pragma once

#include "native/dtype.h"
#include "platform.cuh"

namespace bnb_core {

// Memory as large as COUNT elements, moved in the widest accesses that divide it.
template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT < 16 ? sizeof(T) * COUNT : 16) Items {
    T of[COUNT];
};

// Whether all addresses allow accesses of 16 bytes.
template <class... P>
bool aligned(const P*... pointers) {
    return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

// Elements begin ... of n as they are, zeros after the last. wide: they are aligned.
template <int COUNT, class T>
__device__ __forceinline__ Items<T, COUNT> read(const T* from, std::int64_t begin, std::int64_t n, bool wide) {
    if (wide && begin + COUNT <= n) return *reinterpret_cast<const Items<T, COUNT>*>(from + begin);
    Items<T, COUNT> found = {};
    for (int i = 0; i < COUNT; ++i) {
        if (begin + i < n) found.of[i] = from[begin + i];
    }
    return found;
}

// The same as fp32.
template <int COUNT, class T>
__device__ __forceinline__ void read(const T* from, std::int64_t begin, std::int64_t n, bool wide, float (&to)[COUNT]) {
    const auto found = read<COUNT>(from, begin, n, wide);
    for (int i = 0; i < COUNT; ++i) to[i] = to_float(found.of[i]);
}

// The elements that exist.
template <int COUNT, class T>
__device__ __forceinline__ void write(T* to, std::int64_t begin, std::int64_t n, bool wide,
                                      const Items<T, COUNT>& from) {
    if (wide && begin + COUNT <= n) {
        *reinterpret_cast<Items<T, COUNT>*>(to + begin) = from;
    } else {
        for (int i = 0; i < COUNT; ++i) {
            if (begin + i < n) to[begin + i] = from.of[i];
        }
    }
}

}  // namespace bnb_core
