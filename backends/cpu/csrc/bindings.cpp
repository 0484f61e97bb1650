// The Python names of the kernels: addresses become pointers, and the GIL is released around each call.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string_view>

#include "dequantize_blockwise.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
    m.doc() = "Kernels of bnb_core for CPUs.";

    m.def(
        "dequantize_blockwise",
        [](std::uintptr_t A, std::uintptr_t absmax, std::uintptr_t code, std::int64_t code_size, std::int64_t blocksize,
           std::int64_t n, std::string_view dtype, std::uintptr_t out) {
            bnb_core::dequantize_blockwise(pointer<const std::uint8_t>(A), pointer<const float>(absmax),
                                           pointer<const float>(code), code_size, blocksize, n, dtype,
                                           pointer<void>(out));
        },
        py::arg("A"), py::arg("absmax"), py::arg("code"), py::arg("code_size"), py::arg("blocksize"), py::arg("n"),
        py::arg("dtype"), py::arg("out"), py::call_guard<py::gil_scoped_release>());
}
