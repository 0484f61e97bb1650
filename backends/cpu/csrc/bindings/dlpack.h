// The part of the DLPack standard (version 1) by which a tensor of Python is read without a call of Python:
// `__dlpack_c_exchange_api__`, https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace bnb_core::dlpack {

constexpr std::uint32_t kMajorVersion = 1;
constexpr std::int32_t kCpu = 1;
constexpr const char* kCapsule = "dlpack_exchange_api";

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    std::int32_t device_type;
    std::int32_t device_id;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements
    std::uint64_t byte_offset;
};

struct ExchangeApi {
    std::uint32_t major;
    std::uint32_t minor;
    const void* previous;
    void (*unused[3])();
    // Lends the fields of a tensor of Python, for as long as that lives. -1 with an exception of Python set, or 0.
    int (*tensor_from_object)(void* object, Tensor* result);
    void (*unused_stream)();
};

}  // namespace bnb_core::dlpack
