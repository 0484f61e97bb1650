"""Block-wise quantization to 8 bits, and what the 4-bit operators and the 8-bit optimizers share with it.

A flattened tensor is cut into blocks of `blocksize` elements, the last one may be short. A block is stored as its
largest magnitude `absmax` (fp32) and, per element, the index of the code value nearest to `element / absmax` (8-bit
optimizers, arXiv:2110.02861).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from bnb_core.ops_registry.codebooks import DecisionTable, decision_table

# Elements worked on at a time: bounds the memory for intermediate results, and on a CPU they stay in cache.
CHUNK = 1 << 20

Normalize = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def quantize_blockwise(
    A: torch.Tensor, code: torch.Tensor, blocksize: int, out: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (uint8, the shape of A) and absmax (fp32, one per block).

    A block with NaN or Inf gets absmax NaN and the code of 0 throughout, and so decodes to NaN.
    """
    codes, absmax = encode(A.reshape(-1), decision_table(code), blocksize)
    if out is not None:
        out[0].copy_(codes.view(A.shape))
        out[1].copy_(absmax)
    return codes.view(A.shape), absmax


def dequantize_blockwise(
    A: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    blocksize: int,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`code[A] * absmax` of each block in fp32, rounded once to `dtype`. A code past the end of the table gives NaN."""
    codes = A.reshape(-1)
    table = F.pad(code, (0, 256 - code.numel()), value=float("nan"))
    values = torch.empty(codes.shape, dtype=dtype, device=A.device)
    for elements, blocks in block_slices(codes.numel(), blocksize):
        found = table.index_select(0, codes[elements].to(torch.int32))
        values[elements] = scale_blocks(found, absmax.reshape(-1)[blocks], blocksize)
    values = values.view(A.shape)
    return values if out is None else out.copy_(values)


def encode(
    values: torch.Tensor, table: DecisionTable, blocksize: int, normalize: Normalize = torch.div
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (uint8) and absmax (fp32) of a flat tensor; `normalize` divides its blocks by their absmax."""
    count = values.numel()
    codes = torch.empty(count, dtype=torch.uint8, device=values.device)
    absmax = torch.empty(-(-count // blocksize), dtype=torch.float32, device=values.device)
    for elements, blocks in block_slices(count, blocksize):
        part = values[elements].float()
        x = as_blocks(part, blocksize)
        absmax[blocks] = finite_or_nan(x.abs().amax(dim=1))
        scale = absmax[blocks, None]
        # Blocks of zeros, and those with NaN or Inf, get the code of 0 throughout.
        t = torch.where(scale > 0, normalize(x, scale), 0.0)
        codes[elements] = table.nearest(t)[: part.numel()]
    return codes, absmax


def finite_or_nan(absmax: torch.Tensor) -> torch.Tensor:
    """`absmax` with NaN in place of Inf."""
    return torch.where(torch.isfinite(absmax), absmax, float("nan"))


def block_slices(count: int, blocksize: int) -> Iterator[tuple[slice, slice]]:
    """Elements and blocks of `count` elements, in runs of whole blocks of about `CHUNK` elements."""
    blocks = -(-count // blocksize)
    per_run = max(1, CHUNK // blocksize)
    for first in range(0, blocks, per_run):
        last = min(blocks, first + per_run)
        yield slice(first * blocksize, min(count, last * blocksize)), slice(first, last)


def as_blocks(x: torch.Tensor, blocksize: int) -> torch.Tensor:
    """A flat, non-empty tensor as [blocks, blocksize], zeros after the last element."""
    blocksize = min(blocksize, x.numel())
    short = -x.numel() % blocksize
    return (F.pad(x, (0, short)) if short else x).view(-1, blocksize)


def scale_blocks(x: torch.Tensor, absmax: torch.Tensor, blocksize: int) -> torch.Tensor:
    """Each element of a flat, non-empty tensor times its block's scale."""
    return (as_blocks(x, blocksize) * absmax[:, None]).view(-1)[: x.numel()]
