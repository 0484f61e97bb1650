// Managed memory: pages of it leave the GPU where other memory needs the room, and come back where a kernel needs them.
#include "bindings.h"

#ifndef BNB_FIBERS
#include <cstring>
#endif

namespace bnb_core {

#ifdef BNB_FIBERS

void bind_paging(py::module_&) {}

#else

namespace {

bool is_free(std::size_t bytes) {
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return bytes <= free;
}

// Whether the host may touch managed memory while kernels run, and memory can be larger than that of the device.
bool has_paging(int device) {
    int found = 0;
    check(cudaDeviceGetAttribute(&found, cudaDevAttrConcurrentManagedAccess, device), "cudaDeviceGetAttribute");
    return found != 0;
}

// Zeros; 0 where the device has no such memory. They begin on the device where it has that much free, else on the host.
Address allocate(int device, Stream stream, std::size_t bytes) {
    const DeviceGuard guard(device);
    if (!has_paging(device)) return 0;
    void* memory = nullptr;
    check(cudaMallocManaged(&memory, bytes), "cudaMallocManaged");
    try {
        if (is_free(bytes)) {
            check(cudaMemsetAsync(memory, 0, bytes, stream), "cudaMemsetAsync");
        } else {
            std::memset(memory, 0, bytes);
        }
    } catch (...) {
        cudaFree(memory);
        throw;
    }
    return reinterpret_cast<Address>(memory);
}

// Nothing for memory that is not managed, or more than the device has free: kernels then bring what they touch.
void prefetch(int device, Stream stream, const void* memory, std::size_t bytes) {
    const DeviceGuard guard(device);
    cudaPointerAttributes found = {};
    check(cudaPointerGetAttributes(&found, memory), "cudaPointerGetAttributes");
    if (found.type != cudaMemoryTypeManaged || !is_free(bytes)) return;
#if CUDART_VERSION >= 13000
    cudaMemLocation place = {};
    place.type = cudaMemLocationTypeDevice;
    place.id = device;
    check(cudaMemPrefetchAsync(memory, bytes, place, 0, stream), "cudaMemPrefetchAsync");
#else
    check(cudaMemPrefetchAsync(memory, bytes, device, stream), "cudaMemPrefetchAsync");
#endif
}

}  // namespace

void bind_paging(py::module_& m) {
    define(m, "managed_allocate", [](std::int64_t device, Address stream, std::int64_t bytes) {
        return allocate(static_cast<int>(device), stream_of(stream), static_cast<std::size_t>(bytes));
    });
    define(m, "managed_prefetch", [](std::int64_t device, Address stream, Address memory, std::int64_t bytes) {
        prefetch(static_cast<int>(device), stream_of(stream), pointer<const void>(memory),
                 static_cast<std::size_t>(bytes));
    });
    // Waits for the device. An error would be that of a process that ends.
    define(m, "managed_free", [](Address memory) { cudaFree(pointer<void>(memory)); });
}

#endif

}  // namespace bnb_core
