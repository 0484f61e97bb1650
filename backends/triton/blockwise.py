"""Blockwise 8-bit quantization (arXiv:2110.02861)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.codebooks import decision_table

from .launch import next_power, on_device, positions, rounded

# Elements of a program that quantizes; a block is one row of its tile.
TILE = 4096
LARGEST_BLOCK = 16384
SIZE = 2048  # elements of a program that dequantizes


def why_not_quantize_blockwise(A: Tensor, code: Tensor, blocksize: int) -> str | None:
    """A block stands in the registers of one program."""
    if min(blocksize, A.numel()) <= LARGEST_BLOCK:
        return None
    return f"needs blocks of at most {LARGEST_BLOCK} elements, got {blocksize}"


def quantize_blockwise(
    A: Tensor, code: Tensor, blocksize: int, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Codes (uint8, the shape of A) and absmax (fp32, one per block)."""
    flat, n = A.contiguous(), A.numel()
    codes = torch.empty(A.shape, dtype=torch.uint8, device=A.device)
    absmax = torch.empty(ceil_div(n, blocksize), dtype=torch.float32, device=A.device)
    boundaries, order = decision_table(code)
    columns = next_power(min(blocksize, max(n, 1)))
    tile = max(1, TILE // columns)
    if n:
        with on_device(A):
            _quantize[(triton.cdiv(absmax.numel(), tile),)](
                *(flat, boundaries, order, codes, absmax, n, absmax.numel(), blocksize, code.numel()),
                ROWS=tile,
                COLUMNS=columns,
                STEPS=(code.numel() - 1).bit_length(),
            )
    if out is None:
        return codes, absmax
    return out[0].copy_(codes), out[1].copy_(absmax)


def dequantize_blockwise(
    A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """`code[A] * absmax` of each block in fp32, rounded once to `dtype`. A code past the end of the table gives NaN."""
    result = torch.empty(A.shape, dtype=dtype, device=A.device)
    if n := A.numel():
        with on_device(A):
            _dequantize[(triton.cdiv(n, SIZE),)](
                *(A.contiguous(), absmax.contiguous(), code.contiguous(), result, n, blocksize, code.numel()), SIZE=SIZE
            )
    return result if out is None else out.copy_(result)


@triton.jit
def block_absmax(x, exist):
    """The largest magnitude of each row, NaN where one is no finite number; and whether it scales to something."""
    magnitude = tl.abs(x)
    finite = magnitude < float("inf")
    largest = tl.max(tl.where(exist & finite, magnitude, 0.0), 1)
    poisoned = tl.max((exist & (finite == 0)).to(tl.int32), 1) > 0
    return tl.where(poisoned, float("nan"), largest), (largest > 0) & (poisoned == 0)


@triton.jit
def nearest(t, boundaries, order, entries, STEPS: tl.constexpr):
    """The code of the value nearest to each number: how many boundaries are below it, found bit by bit."""
    position = tl.zeros_like(t).to(tl.int32)
    for i in tl.static_range(STEPS):
        probe = position + (1 << (STEPS - 1 - i))
        inside = probe < entries
        below = tl.load(boundaries + tl.where(inside, probe - 1, 0), mask=inside, other=float("inf")) < t
        position = tl.where(inside & below, probe, position)
    return tl.load(order + position)


@triton.jit
def _quantize(
    A, boundaries, order, codes, absmax, n, blocks, blocksize, entries,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    block = positions(ROWS)
    column = tl.arange(0, COLUMNS)
    element = block[:, None] * blocksize + column[None, :]
    exist = (column < blocksize)[None, :] & (element < n)
    x = tl.load(A + element, mask=exist, other=0.0).to(tl.float32)
    scale, scales = block_absmax(x, exist)
    t = tl.where(scales[:, None], tl.div_rn(x, tl.where(scales, scale, 1.0)[:, None]), 0.0)
    tl.store(codes + element, nearest(t, boundaries, order, entries, STEPS), mask=exist)
    tl.store(absmax + block, scale, mask=block < blocks)


@triton.jit
def _dequantize(A, absmax, code, result, n, blocksize, entries, SIZE: tl.constexpr):
    element = positions(SIZE)
    exist = element < n
    codes = tl.load(A + element, mask=exist, other=0).to(tl.int32)
    value = tl.load(code + codes, mask=exist & (codes < entries), other=float("nan"))
    scale = tl.load(absmax + element // blocksize, mask=exist, other=0.0)
    tl.store(result + element, rounded(value * scale, result.dtype.element_ty), mask=exist)
