// The kernels of one level, as the bindings call them: one function pointer an entry.
#pragma once

#include "blockwise/dequantize_blockwise.h"
#include "blockwise/quantize_blockwise.h"
#include "fourbit/dequantize_4bit.h"
#include "fourbit/embedding_4bit.h"
#include "fourbit/gemm_4bit.h"
#include "fourbit/quantize_4bit.h"
#include "int8/int8_double_quant.h"
#include "int8/int8_linear.h"
#include "int8/int8_mm.h"
#include "int8/int8_mm_dequant.h"
#include "int8/int8_scaled_mm.h"
#include "int8/int8_vectorwise_dequant.h"
#include "int8/int8_vectorwise_quant.h"
#include "optimizer/optimizer_32bit.h"
#include "optimizer/optimizer_8bit.h"
#include "optimizer/optimizer_8bit_blockwise.h"
#include "statistics/percentile_clipping.h"
#include "statistics/sort_values.h"

// X(type of the function, its name) for each kernel.
#define BNB_INT8_KERNELS(X)                           \
    X(Int8DoubleQuant, int8_double_quant)             \
    X(Int8Linear, int8_linear)                        \
    X(Int8Mm, int8_mm)                                \
    X(Int8MmDequant, int8_mm_dequant)                 \
    X(Int8ScaledMm, int8_scaled_mm)                   \
    X(Int8VectorwiseDequant, int8_vectorwise_dequant) \
    X(Int8VectorwiseQuant, int8_vectorwise_quant)
#define BNB_OTHER_KERNELS(X)                                     \
    X(DequantizeBlockwise, dequantize_blockwise)                 \
    X(QuantizeBlockwise, quantize_blockwise)                     \
    X(Dequantize4bit, dequantize_4bit)                           \
    X(Quantize4bit, quantize_4bit)                               \
    X(Embedding4bit, embedding_4bit)                             \
    X(Gemm4bit, gemm_4bit)                                       \
    X(OptimizerStep32bit, optimizer_step_32bit)                  \
    X(OptimizerStep8bitBlockwise, optimizer_step_8bit_blockwise) \
    X(OptimizerStep8bit, optimizer_step_8bit)                    \
    X(PercentileClipping, percentile_clipping)                   \
    X(SortValues, sort_values)

namespace bnb_core {

struct Kernels {
#define X(Function, name) Function* name;
    BNB_INT8_KERNELS(X)
    BNB_OTHER_KERNELS(X)
#undef X
};

}  // namespace bnb_core
