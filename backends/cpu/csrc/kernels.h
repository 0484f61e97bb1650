// The kernels of one level, as the bindings call them: one function pointer an entry.
#pragma once

#include "blockwise/dequantize_blockwise.h"
#include "blockwise/quantize_blockwise.h"
#include "fourbit/dequantize_4bit.h"
#include "fourbit/embedding_4bit.h"
#include "fourbit/quantize_4bit.h"
#include "fourbit/gemm_4bit.h"
#include "optimizer/optimizer_32bit.h"

namespace bnb_core {

struct Kernels {
    DequantizeBlockwise* dequantize_blockwise;
    QuantizeBlockwise* quantize_blockwise;
    Dequantize4bit* dequantize_4bit;
    Quantize4bit* quantize_4bit;
    Embedding4bit* embedding_4bit;
    Gemm4bit* gemm_4bit;
    OptimizerStep32bit* optimizer_step_32bit;
};

}  // namespace bnb_core
