"""4-bit weights: NF4 and FP4, two codes to a byte, one scale per block (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..cases import fourbit as inputs
from ..checks import Check, ceil_div, product
from ..formats import BLOCKSIZES, FLOATS, NESTED_BLOCKSIZE, QUANT_TYPES, STORAGES
from ..op import Op, Result, define
from ..tolerance import EXACT, PRODUCT


def _packed_bytes(elements: Any) -> Any:
    return ceil_div(elements, 2)


def _check_format(check: Check, blocksize: int, quant_type: str) -> None:
    check.value("blocksize", blocksize, BLOCKSIZES)
    check.value("quant_type", quant_type, QUANT_TYPES)


def _check_packed(check: Check, name: str, packed: Tensor, shape: Sequence[Any]) -> None:
    check.dtype(name, packed, STORAGES)
    size = packed.dtype.itemsize
    check.numel(name, packed, ceil_div(_packed_bytes(product(shape)), size), lambda: f"shape {tuple(shape)} in 4 bits")


def _check_shape(check: Check, name: str, shape: Sequence[Any]) -> None:
    for size in shape:
        check.that(size >= 0, lambda: f"{name} is {tuple(shape)}, expected sizes of at least 0")


def _check_weight(
    check: Check, B: Tensor, shapeB: Sequence[Any], blocksize: int, quant_type: str, sizes: int = 2
) -> None:
    _check_format(check, blocksize, quant_type)
    check.that(len(shapeB) == sizes, lambda: f"shapeB has {len(shapeB)} sizes, expected {sizes}")
    _check_shape(check, "shapeB", shapeB)
    _check_packed(check, "B", B, shapeB)


def _check_scales(
    check: Check,
    shapeB: Sequence[Any],
    absmax: Tensor,
    blocksize: int,
    absmax_8bit: Tensor | None,
    absmax_code: Tensor | None,
    absmax_offset: Tensor | None,
) -> None:
    """Plain scales: one fp32 per block. Nested: uint8 codes per block, themselves in blocks of 256, and an offset."""
    nested = {"absmax_8bit": absmax_8bit, "absmax_code": absmax_code, "absmax_offset": absmax_offset}
    given = [name for name, tensor in nested.items() if tensor is not None]
    check.that(
        len(given) in (0, 3), lambda: f"{' and '.join(given)} given, expected all of {', '.join(nested)} or none"
    )
    if absmax_8bit is None or absmax_code is None or absmax_offset is None:
        check.absmax("absmax", absmax, product(shapeB), blocksize, lambda: f"shapeB {tuple(shapeB)}")
        return
    blocks = ceil_div(product(shapeB), blocksize)
    check.dtype("absmax_8bit", absmax_8bit, (torch.uint8,))
    check.numel("absmax_8bit", absmax_8bit, blocks, lambda: f"shapeB {tuple(shapeB)} with blocksize {blocksize}")
    check.absmax("absmax", absmax, blocks, NESTED_BLOCKSIZE, lambda: f"absmax_8bit of {blocks} elements")
    check.code("absmax_code", absmax_code)
    check.dtype("absmax_offset", absmax_offset, (torch.float32,))
    check.numel("absmax_offset", absmax_offset, 1, lambda: "one offset")


_quantize = Check("quantize_4bit")
_dequantize = Check("dequantize_4bit")
_gemm = Check("gemm_4bit")
_grouped = Check("grouped_gemm_4bit")
_embedding = Check("embedding_4bit")


def _check_quantize(A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype) -> None:
    _quantize.dtype("A", A, FLOATS)
    _check_format(_quantize, blocksize, quant_type)
    _quantize.value("quant_storage", quant_storage, STORAGES)


def _quantize_results(A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype) -> tuple[Result, ...]:
    packed = ceil_div(_packed_bytes(A.numel()), quant_storage.itemsize)
    return Result((packed, 1), quant_storage), Result((ceil_div(A.numel(), blocksize),), torch.float32)


def _check_dequantize(
    A: Tensor, absmax: Tensor, blocksize: int, quant_type: str, shape: Sequence[Any], dtype: torch.dtype
) -> None:
    _check_format(_dequantize, blocksize, quant_type)
    _dequantize.value("dtype", dtype, FLOATS)
    _check_shape(_dequantize, "shape", shape)
    _check_packed(_dequantize, "A", A, shape)
    _dequantize.absmax("absmax", absmax, product(shape), blocksize, lambda: f"shape {tuple(shape)}")
    _dequantize.one_device(A, absmax=absmax)


def _dequantize_results(
    A: Tensor, absmax: Tensor, blocksize: int, quant_type: str, shape: Sequence[Any], dtype: torch.dtype
) -> tuple[Result]:
    return (Result(shape, dtype),)


def _check_gemm(
    A: Tensor,
    B: Tensor,
    shapeB: Sequence[Any],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    bias: Tensor | None = None,
    absmax_8bit: Tensor | None = None,
    absmax_code: Tensor | None = None,
    absmax_offset: Tensor | None = None,
) -> None:
    _gemm.dtype("A", A, FLOATS)
    _gemm.at_least_1d("A", A)
    _check_weight(_gemm, B, shapeB, blocksize, quant_type)
    _gemm.that(
        A.shape[-1] == shapeB[1],
        lambda: f"A has shape {tuple(A.shape)}, expected {shapeB[1]} as its last size, as shapeB {tuple(shapeB)} has",
    )
    _check_scales(_gemm, shapeB, absmax, blocksize, absmax_8bit, absmax_code, absmax_offset)
    if bias is not None:
        _gemm.dtype("bias", bias, FLOATS)
        _gemm.shape("bias", bias, (shapeB[0],))
    _gemm.one_device(
        A, B=B, absmax=absmax, bias=bias, absmax_8bit=absmax_8bit, absmax_code=absmax_code, absmax_offset=absmax_offset
    )


def _gemm_results(A: Tensor, B: Tensor, shapeB: Sequence[Any], *rest: Any) -> tuple[Result]:
    return (Result((*A.shape[:-1], shapeB[0]), A.dtype),)


def _check_grouped(
    A: Tensor,
    B: Tensor,
    shapeB: Sequence[Any],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    ends: Tensor,
    bias: Tensor | None = None,
    absmax_8bit: Tensor | None = None,
    absmax_code: Tensor | None = None,
    absmax_offset: Tensor | None = None,
    input_gradient: bool = False,
) -> None:
    _grouped.dtype("A", A, FLOATS)
    _grouped.ndim("A", A, 2)
    _check_weight(_grouped, B, shapeB, blocksize, quant_type, 3)
    groups, N, K = shapeB
    _grouped.that(
        (N * K) % blocksize == 0,
        lambda: f"shapeB is {tuple(shapeB)}, expected weights of whole blocks: {N} * {K} divided by {blocksize}",
    )
    width = N if input_gradient else K
    _grouped.that(
        A.shape[1] == width,
        lambda: f"A has shape {tuple(A.shape)}, expected {width} columns for shapeB {tuple(shapeB)}",
    )
    _check_scales(_grouped, shapeB, absmax, blocksize, absmax_8bit, absmax_code, absmax_offset)
    _grouped.dtype("ends", ends, (torch.int32, torch.int64))
    _grouped.shape("ends", ends, (groups,))
    if bias is not None:
        _grouped.that(not input_gradient, lambda: "bias is given, expected None for an input_gradient")
        _grouped.dtype("bias", bias, FLOATS)
        _grouped.shape("bias", bias, (groups, N))
    _grouped.one_device(
        A,
        B=B,
        absmax=absmax,
        ends=ends,
        bias=bias,
        absmax_8bit=absmax_8bit,
        absmax_code=absmax_code,
        absmax_offset=absmax_offset,
    )


def _grouped_results(
    A: Tensor,
    B: Tensor,
    shapeB: Sequence[Any],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    ends: Tensor,
    bias: Tensor | None = None,
    absmax_8bit: Tensor | None = None,
    absmax_code: Tensor | None = None,
    absmax_offset: Tensor | None = None,
    input_gradient: bool = False,
) -> tuple[Result]:
    return (Result((A.shape[0], shapeB[2] if input_gradient else shapeB[1]), A.dtype),)


def _check_embedding(
    indices: Tensor,
    B: Tensor,
    shapeB: Sequence[Any],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    dtype: torch.dtype,
    absmax_8bit: Tensor | None = None,
    absmax_code: Tensor | None = None,
    absmax_offset: Tensor | None = None,
) -> None:
    _embedding.dtype("indices", indices, (torch.int64, torch.int32))
    _embedding.value("dtype", dtype, FLOATS)
    _check_weight(_embedding, B, shapeB, blocksize, quant_type)
    _check_scales(_embedding, shapeB, absmax, blocksize, absmax_8bit, absmax_code, absmax_offset)
    _embedding.one_device(
        indices, B=B, absmax=absmax, absmax_8bit=absmax_8bit, absmax_code=absmax_code, absmax_offset=absmax_offset
    )


def _embedding_results(
    indices: Tensor,
    B: Tensor,
    shapeB: Sequence[Any],
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    dtype: torch.dtype,
    *nested: Any,
) -> tuple[Result]:
    return (Result((*indices.shape, shapeB[1]), dtype),)


define(
    Op(
        schema="quantize_4bit(Tensor A, int blocksize, str quant_type, ScalarType quant_storage)"
        " -> (Tensor packed, Tensor absmax)",
        check=_check_quantize,
        results=_quantize_results,
        cases=inputs.quantize_cases,
        bad_cases=inputs.bad_quantize,
        tolerance=EXACT,
        doc="""Quantizes to 4-bit codes, two to a byte (the even element in the high nibble), one fp32 scale per block.

        A code is the one nearest to `A * (1 / absmax)`, both fp32; on a boundary the lower value. Of FP4's two zeros,
        0 and 8, positive values get 8, as in the checkpoints that exist; zeros, and blocks of zeros or with NaN, get
        0.

        A: any shape, fp32, fp16 or bf16; blocks run over the flattened tensor. blocksize: 16, 32, … 4096.
        quant_type: `nf4` or `fp4`. packed: `[⌈n / 2⌉ bytes viewed as quant_storage, 1]`, padded with zero bits.
        absmax: fp32 `[⌈n / blocksize⌉]`; 0 for a zero block, NaN for one with NaN or Inf.
        """,
    )
)

define(
    Op(
        schema="dequantize_4bit(Tensor A, Tensor absmax, int blocksize, str quant_type, SymInt[] shape, "
        "ScalarType dtype) -> Tensor",
        check=_check_dequantize,
        results=_dequantize_results,
        cases=inputs.dequantize_cases,
        bad_cases=inputs.bad_dequantize,
        out=("out",),
        tolerance=EXACT,
        doc="""The values of packed 4-bit codes: `code * absmax` in fp32, rounded once to `dtype`.

        A: the packed bytes in any storage dtype and any shape. absmax: fp32, one per block of blocksize elements.
        quant_type: `nf4` or `fp4`. shape: that of the result.
        """,
    )
)

define(
    Op(
        schema="gemm_4bit(Tensor A, Tensor B, SymInt[] shapeB, Tensor absmax, int blocksize, str quant_type, "
        "Tensor? bias=None, Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor",
        check=_check_gemm,
        results=_gemm_results,
        cases=inputs.gemm_cases,
        bad_cases=inputs.bad_gemm,
        out=("out",),
        tolerance=PRODUCT,
        doc="""`A @ dequantize(B).T + bias` with a 4-bit weight.

        A: `[..., K]`. B: the packed bytes of a weight of shapeB = `[N, K]` in quant_type `nf4` or `fp4`, with absmax
        per block of blocksize elements. bias: `[N]`, any float dtype. Result: `[..., N]` in A's dtype, accumulated in
        fp32 and rounded once; fp32 in gives fp32 accuracy. Nested statistics: absmax_8bit are uint8 codes of the
        scales, absmax their own scales per 256, absmax_code their codebook, absmax_offset is added; all three or none.
        """,
    )
)

define(
    Op(
        schema="grouped_gemm_4bit(Tensor A, Tensor B, SymInt[] shapeB, Tensor absmax, int blocksize, str quant_type, "
        "Tensor ends, Tensor? bias=None, Tensor? absmax_8bit=None, Tensor? absmax_code=None, "
        "Tensor? absmax_offset=None, bool input_gradient=False) -> Tensor",
        check=_check_grouped,
        results=_grouped_results,
        cases=inputs.grouped_cases,
        bad_cases=inputs.bad_grouped,
        tolerance=PRODUCT,
        doc="""`gemm_4bit` of groups of rows, each with a weight of its own, as of the experts of a mixture.

        A: `[T, K]`, the rows of a group next to each other. ends: int32 or int64 `[E]`, the row after the last one of
        each group, ascending; rows after the last group give zeros (ends that are not ascending, or beyond T, raise
        IndexError where the device can). B: the packed bytes of weights of shapeB = `[E, N, K]`, one run of elements,
        N * K a multiple of blocksize. absmax, blocksize, quant_type, absmax_8bit, absmax_code, absmax_offset: as of the
        weight of `gemm_4bit`. bias: `[E, N]`. Result: `[T, N]` in A's dtype. input_gradient: A is a gradient `[T, N]`,
        and the result `A @ dequantize(B)`, `[T, K]`.
        """,
    )
)

define(
    Op(
        schema="embedding_4bit(Tensor indices, Tensor B, SymInt[] shapeB, Tensor absmax, int blocksize, "
        "str quant_type, ScalarType dtype, Tensor? absmax_8bit=None, Tensor? absmax_code=None, "
        "Tensor? absmax_offset=None) -> Tensor",
        check=_check_embedding,
        results=_embedding_results,
        cases=inputs.embedding_cases,
        bad_cases=inputs.bad_embedding,
        tolerance=EXACT,
        doc="""Rows of a 4-bit table: only those asked for are dequantized.

        indices: any shape, int64 or int32, within the table (an index outside raises IndexError where the device can).
        B, shapeB, absmax, blocksize, quant_type, absmax_8bit, absmax_code, absmax_offset: the table, as the weight of
        `gemm_4bit`. Result: `[*indices.shape, K]` in `dtype`.
        """,
    )
)
