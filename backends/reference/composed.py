"""Operators composed of others (`ops_registry/compositions.py`), for devices that have kernels for some.

The others are called as operators, so that the device's kernels compute them; the rest is torch's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from bnb_core.ops_registry.formats import as_bytes
from bnb_core.ops_registry.groups import group_rows
from bnb_core.ops_registry.precision import fp32_product

from . import int8
from .fourbit import block_scales
from .optimizer import BlockwiseSteps, CodedState

ops = torch.ops.bnb_core


# -- 4-bit weights -----------------------------------------------------------------------------------------------------


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x @ weight.T + bias` in x's dtype, which is the weight's; 16 bits are summed in fp32 by the device's product."""
    if x.dtype == torch.float32:
        result = fp32_product(x, weight)
        return result if bias is None else result.add_(bias)
    result = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    # A product that is told where to write is left alone by autocast, and needs operands without a gradient.
    torch.mm(x.detach(), weight.detach().t(), out=result)
    return result if bias is None else (result.float() + bias.detach().float()).to(x.dtype)


def gemm_4bit(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Dequantized to A's dtype, and multiplied."""
    rows, columns = shapeB
    scales = block_scales(absmax, absmax_8bit, absmax_code, absmax_offset)
    weight = ops.dequantize_4bit.default(B, scales, blocksize, quant_type, shapeB, A.dtype)
    x = A.reshape(prod(A.shape[:-1]), columns)
    result = _product(x, weight, bias).view(*A.shape[:-1], rows)
    return result if out is None else out.copy_(result)


def grouped_gemm_4bit(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    ends: torch.Tensor,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
    input_gradient: bool = False,
) -> torch.Tensor:
    """The weight of each group that has rows dequantized to A's dtype, and multiplied."""
    _, N, K = shapeB
    packed, scales = as_bytes(B), block_scales(absmax, absmax_8bit, absmax_code, absmax_offset)
    size, blocks = N * K // 2, N * K // blocksize
    result = torch.zeros(A.shape[0], K if input_gradient else N, dtype=A.dtype, device=A.device)
    for group, rows in group_rows(ends, A.shape[0]):
        part = packed[group * size : (group + 1) * size], scales[group * blocks : (group + 1) * blocks]
        weight = ops.dequantize_4bit.default(*part, blocksize, quant_type, (N, K), A.dtype)
        own_bias = None if bias is None else bias[group]
        result[rows] = _product(A[rows], weight.t() if input_gradient else weight, own_bias)
    return result


def why_not_embedding_4bit(
    indices: torch.Tensor, B: torch.Tensor, shapeB: Sequence[int], absmax: torch.Tensor, blocksize: int, *rest: object
) -> str | None:
    """Rows are cut out of the codes as they are."""
    whole = shapeB[1] % blocksize == 0
    return None if whole else f"needs rows of whole blocks of {blocksize}, got shapeB {tuple(shapeB)}"


def embedding_4bit(
    indices: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    dtype: torch.dtype,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """The codes and scales of the rows asked for, dequantized."""
    rows, columns = shapeB
    flat = indices.reshape(-1)
    scales = block_scales(absmax, absmax_8bit, absmax_code, absmax_offset)
    codes = as_bytes(B)[: rows * columns // 2].view(rows, columns // 2).index_select(0, flat)
    chosen = scales.view(rows, columns // blocksize).index_select(0, flat).view(-1)
    shape = (flat.numel(), columns)
    values = ops.dequantize_4bit.default(codes.view(-1, 1), chosen, blocksize, quant_type, shape, dtype)
    return values.view(*indices.shape, columns)


# -- int8 --------------------------------------------------------------------------------------------------------------

_products = int8.Int8Products(
    ops.int8_mm.default, ops.int8_vectorwise_quant.default, ops.int8_vectorwise_dequant.default
)
int8_scaled_mm = _products.int8_scaled_mm
int8_mixed_scaled_mm = _products.int8_mixed_scaled_mm
int8_linear = _products.int8_linear
int8_vectorwise_dequant = int8.int8_vectorwise_dequant
int8_mm_dequant = int8.int8_mm_dequant


# -- optimizers with 8-bit state ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OperatorState(CodedState):
    """`CodedState` that is decoded and coded by the operators."""

    def load(self, shape: torch.Size) -> list[torch.Tensor]:
        size = self.blocksize or shape.numel()
        decode = ops.dequantize_blockwise.default
        return [decode(q, scale, self.code, size, torch.float32) for q, scale in self._parts(shape)]

    def _coded(self, moment: torch.Tensor, blocksize: int) -> tuple[torch.Tensor, torch.Tensor]:
        return ops.quantize_blockwise.default(moment.reshape(-1), self.code, blocksize)


_steps = BlockwiseSteps(OperatorState)
optimizer_step_8bit_blockwise = _steps.optimizer_step_8bit_blockwise
optimizer_update_8bit_blockwise = _steps.optimizer_update_8bit_blockwise
