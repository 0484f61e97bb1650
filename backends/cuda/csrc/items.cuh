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

// Elements begin ... of n as fp32, zeros after the last. WIDE: they are all there, and aligned.
template <int COUNT, class T>
__device__ __forceinline__ void read(const T* from, std::int64_t begin, std::int64_t n, bool wide, float (&to)[COUNT]) {
    if (wide && begin + COUNT <= n) {
        const auto found = *reinterpret_cast<const Items<T, COUNT>*>(from + begin);
        for (int i = 0; i < COUNT; ++i) to[i] = to_float(found.of[i]);
    } else {
        for (int i = 0; i < COUNT; ++i) to[i] = begin + i < n ? to_float(from[begin + i]) : 0.0f;
    }
}

// The elements that exist, in their type.
template <int COUNT, class T>
__device__ __forceinline__ void write(T* to, std::int64_t begin, std::int64_t n, bool wide, const T (&from)[COUNT]) {
    if (wide && begin + COUNT <= n) {
        Items<T, COUNT> made;
        for (int i = 0; i < COUNT; ++i) made.of[i] = from[i];
        *reinterpret_cast<Items<T, COUNT>*>(to + begin) = made;
    } else {
        for (int i = 0; i < COUNT; ++i) {
            if (begin + i < n) to[begin + i] = from[i];
        }
    }
}

}  // namespace bnb_core
