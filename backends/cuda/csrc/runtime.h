// Devices and errors, for the host.
#pragma once

#ifdef BNB_FIBERS

#include "tests/fibers/fibers.h"

#else

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "stream.h"

namespace bnb_core {

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // a later call must not report it again
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Makes a device the current one of this thread for as long as it lives.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (before_ == device) return;
        check(cudaSetDevice(device), "cudaSetDevice");
        changed_ = true;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

// Multiprocessors of the current device.
inline int processors() {
    int device = 0, count = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return count;
}

// Of the current device: 90 for compute capability 9.0.
inline int architecture() {
    int device = 0, major = 0, minor = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
    return 10 * major + minor;
}

// Blocks that each work on several parts: so many that the current device is full, and no more than there are parts.
// each: how many a multiprocessor holds, of 256 threads where nothing else is said.
inline std::int64_t resident(std::int64_t parts, std::int64_t each = 8) {
    const std::int64_t full = processors() * each;
    return parts < full ? parts : full;
}

}  // namespace bnb_core

#endif
