"""8-bit blockwise quantization with a codebook (arXiv:2110.02861, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import blockwise as inputs
from ..checks import Check, ceil_div
from ..formats import FLOATS
from ..op import Op, Result, define
from ..tolerance import EXACT

_quantize = Check("quantize_blockwise")
_dequantize = Check("dequantize_blockwise")


def _check_quantize(A: Tensor, code: Tensor, blocksize: int) -> None:
    _quantize.dtype("A", A, FLOATS)
    _quantize.code("code", code)
    _quantize.at_least("blocksize", blocksize, 1)
    _quantize.one_device(A, code=code)


def _quantize_results(A: Tensor, code: Tensor, blocksize: int) -> tuple[Result, ...]:
    return Result(A.shape, torch.uint8), Result((ceil_div(A.numel(), blocksize),), torch.float32)


def _check_dequantize(A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype) -> None:
    _dequantize.dtype("A", A, (torch.uint8,))
    _dequantize.code("code", code)
    _dequantize.at_least("blocksize", blocksize, 1)
    _dequantize.value("dtype", dtype, FLOATS)
    _dequantize.absmax("absmax", absmax, A.numel(), blocksize, lambda: f"A of shape {tuple(A.shape)}")
    _dequantize.one_device(A, absmax=absmax, code=code)


def _dequantize_results(A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype) -> tuple[Result]:
    return (Result(A.shape, dtype),)


define(
    Op(
        schema="quantize_blockwise(Tensor A, Tensor code, int blocksize) -> (Tensor q, Tensor absmax)",
        check=_check_quantize,
        results=_quantize_results,
        cases=inputs.quantize_cases,
        bad_cases=inputs.bad_quantize,
        out=("out_q", "out_absmax"),
        tolerance=EXACT,
        doc="""Quantizes to 8-bit codes with one scale per block of the flattened tensor.

        A: any shape, fp32, fp16 or bf16. code: fp32 `[1…256]`. blocksize: elements per block, the last may be short.
        q: uint8 like A, the index of the code nearest to `A / absmax`; on a boundary (the fp32 midpoint of two
        neighbours) the lower value, among equal codes the lowest index, NaN never. absmax: fp32 `[⌈n / blocksize⌉]`;
        0 for a zero block, NaN for a block with NaN or Inf, whose codes are then that of 0.
        """,
    )
)

define(
    Op(
        schema="dequantize_blockwise(Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype) -> Tensor",
        check=_check_dequantize,
        results=_dequantize_results,
        cases=inputs.dequantize_cases,
        bad_cases=inputs.bad_dequantize,
        out=("out",),
        tolerance=EXACT,
        doc="""The values of blockwise codes: `code[A] * absmax`, in fp32, rounded once to `dtype`.

        A: uint8, any shape. absmax: fp32, one per block of blocksize elements. A code past the end of a short codebook
        gives NaN.
        """,
    )
)
