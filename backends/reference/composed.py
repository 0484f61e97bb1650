"""Operators composed of others (`ops_registry/compositions.py`), for devices that have kernels for some.

The others are called as operators, so that the device's kernels compute them; the rest is torch's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from bnb_core.ops_registry.formats import STATE_BLOCKSIZE
from bnb_core.ops_registry.groups import group_rows

from .fourbit import as_bytes, block_scales
from .int8 import as_rows, scale_product
from .optimizer import CodedState, Settings, State, TensorList, at, on_device, update_parameter
from .product import fp32_product

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


def int8_scaled_mm(
    A: torch.Tensor,
    B: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The exact product, and its values."""
    product = ops.int8_mm.default(A, B)
    return scale_product(product, row_stats, col_stats, bias).to(dtype or torch.float16).view(product.shape)


def int8_mixed_scaled_mm(
    A: torch.Tensor,
    CA: torch.Tensor,
    CB: torch.Tensor,
    SCA: torch.Tensor,
    SCB: torch.Tensor,
    outlier_cols: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`int8_scaled_mm`, and the outlier columns with their part of the weight."""
    result = int8_scaled_mm(CA, CB, SCA, SCB, bias, A.dtype)
    if outlier_cols is None or not outlier_cols.numel():
        return result, A.new_empty(0)
    outliers = as_rows(A).index_select(1, outlier_cols)
    weight = _weight_columns(CB, SCB, outlier_cols).to(A.dtype)
    total = fp32_product(outliers.float(), weight.float()) + as_rows(result)
    return total.to(A.dtype).view(result.shape), outliers


def int8_linear(
    A: torch.Tensor, CB: torch.Tensor, SCB: torch.Tensor, bias: torch.Tensor | None = None, threshold: float = 0.0
) -> torch.Tensor:
    """Quantized rows, the exact product, its values, and the part of the outliers."""
    CA, SCA, outlier_cols = ops.int8_vectorwise_quant.default(A, threshold)
    result = scale_product(ops.int8_mm.default(CA, CB), SCA, SCB, bias)
    if outlier_cols is not None and outlier_cols.numel():
        outliers = as_rows(A).index_select(1, outlier_cols).float()
        result += fp32_product(outliers, _weight_columns(CB, SCB, outlier_cols))
    return result.to(A.dtype).view(*A.shape[:-1], CB.shape[0])


def _weight_columns(CB: torch.Tensor, SCB: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return ops.int8_vectorwise_dequant.default(CB.index_select(1, columns), SCB)


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


def _states(*states: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]) -> list[State]:
    return [
        OperatorState(codes, code, scales, STATE_BLOCKSIZE)
        for codes, code, scales in states
        if codes is not None and code is not None and scales is not None
    ]


def optimizer_step_8bit_blockwise(
    optimizer_name: str,
    grads: TensorList,
    params: TensorList,
    state1: TensorList,
    state2: TensorList | None,
    qmap1: torch.Tensor,
    qmap2: torch.Tensor | None,
    absmax1: TensorList,
    absmax2: TensorList | None,
    step: torch.Tensor,
    lr: torch.Tensor,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """The reference's step on states that the device codes."""
    s = Settings(step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    for i, p in enumerate(params):
        states = _states((state1[i], qmap1, absmax1[i]), (at(state2, i), qmap2, at(absmax2, i)))
        update_parameter(optimizer_name, grads[i], p, states, s)


def optimizer_update_8bit_blockwise(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: torch.Tensor,
    qmap2: torch.Tensor | None,
    absmax1: torch.Tensor,
    absmax2: torch.Tensor | None,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """The same for one parameter, with numbers of the host."""
    t, rate = on_device(step, p), on_device(lr, p)
    s = Settings(t, rate, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    states = _states((state1, qmap1, absmax1), (state2, qmap2, absmax2))
    update_parameter(optimizer_name, g, p, states, s)
