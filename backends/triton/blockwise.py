"""Blockwise 8-bit quantization (arXiv:2110.02861)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.codebooks import decision_table

from .launch import next_power, on_device, rounded, share
from .tiles import tile

LARGEST_BLOCK = 16384


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
    if n:
        columns = next_power(min(blocksize, n))
        launch = tile("blockwise.quantize", A.device)
        rows = max(1, launch.pop("SIZE") // columns)
        with on_device(A):
            _quantize[(triton.cdiv(absmax.numel(), rows),)](
                *(flat, boundaries, order, codes, absmax, n, code.numel()),
                BLOCK=blocksize,
                ROWS=rows,
                COLUMNS=columns,
                STEPS=(code.numel() - 1).bit_length(),
                **launch,
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
        launch = tile("blockwise.dequantize", A.device)
        with on_device(A):
            _dequantize[(triton.cdiv(n, launch["SIZE"]),)](
                *(A.contiguous(), absmax.contiguous(), code.contiguous(), result, n, code.numel()),
                BLOCK=blocksize,
                **launch,
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
    A, boundaries, order, codes, absmax, n, entries,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    # A block is one row of a tile.
    first, count = share(n, ROWS * BLOCK)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    element = row[:, None] * BLOCK + column[None, :]
    exist = (column < BLOCK)[None, :] & (element < count)
    x = tl.load(A + first + element, mask=exist, other=0.0).to(tl.float32)
    scale, scales = block_absmax(x, exist)
    t = tl.where(scales[:, None], tl.div_rn(x, tl.where(scales, scale, 1.0)[:, None]), 0.0)
    tl.store(codes + first + element, nearest(t, boundaries, order, entries, STEPS), mask=exist)
    tl.store(absmax + first // BLOCK + row, scale, mask=row * BLOCK < count)


@triton.jit
def _dequantize(A, absmax, code, result, n, entries, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    first, count = share(n, SIZE)
    element = tl.arange(0, SIZE)
    exist = element < count
    codes = tl.load(A + first + element, mask=exist, other=0).to(tl.int32)
    value = tl.load(code + codes, mask=exist & (codes < entries), other=float("nan"))
    scale = tl.load(absmax + (first + element) // BLOCK, mask=exist, other=0.0)
    tl.store(result + first + element, rounded(value * scale, result.dtype.element_ty), mask=exist)
