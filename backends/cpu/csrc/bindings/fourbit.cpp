#include "bindings.h"

namespace bnb_core {
namespace {

QuantType quant_type_of(std::string_view name) {
    if (name == "nf4") return QuantType::nf4;
    if (name == "fp4") return QuantType::fp4;
    throw std::invalid_argument("unknown quant_type '" + std::string(name) + "', known are nf4, fp4");
}

}  // namespace

void bind_fourbit(py::module_& m, const Kernels& kernels) {
    m.def(
        "quantize_4bit",
        [&kernels](Address A, std::string_view dtype, std::int64_t n, std::int64_t blocksize,
                   std::string_view quant_type, Address packed, std::int64_t size, Address absmax, int threads) {
            kernels.quantize_4bit(pointer<const void>(A), dtype_of(dtype), n, blocksize, quant_type_of(quant_type),
                                  pointer<std::uint8_t>(packed), size, pointer<float>(absmax), threads);
        },
        py::arg("A"), py::arg("dtype"), py::arg("n"), py::arg("blocksize"), py::arg("quant_type"), py::arg("packed"),
        py::arg("size"), py::arg("absmax"), py::arg("threads"), ReleaseGil());
    m.def(
        "dequantize_4bit",
        [&kernels](Address A, Address absmax, std::int64_t blocksize, std::string_view quant_type, std::int64_t n,
                   std::string_view dtype, Address out, int threads) {
            kernels.dequantize_4bit(pointer<const std::uint8_t>(A), pointer<const float>(absmax), blocksize,
                                    quant_type_of(quant_type), n, dtype_of(dtype), pointer<void>(out), threads);
        },
        py::arg("A"), py::arg("absmax"), py::arg("blocksize"), py::arg("quant_type"), py::arg("n"), py::arg("dtype"),
        py::arg("out"), py::arg("threads"), ReleaseGil());
}

}  // namespace bnb_core
