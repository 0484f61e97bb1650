"""Percentiles of gradient norms."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnb_core.ops_registry.formats import GNORM_HISTORY

from .launch import next_power, on_device, share
from .reduction import sum_of
from .tiles import tile


def percentile_clipping(
    grad: Tensor, gnorm_vec: Tensor, step: int, percentile: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes the squared norm of `grad` to slot `step % 100` of `gnorm_vec`; current norm, clip value and scale."""
    n = grad.numel()
    launch = tile("statistics.squares", grad.device)
    programs = triton.cdiv(n, launch["SIZE"])
    partials = torch.empty(programs, dtype=torch.float32, device=grad.device)
    results = [torch.empty((), dtype=torch.float32, device=grad.device) for _ in range(3)]
    with on_device(grad):
        if n:
            _squares[(programs,)](grad.contiguous(), partials, n, **launch)
        _clip[(1,)](
            *(partials, gnorm_vec, *results, programs, gnorm_vec.stride(0), step % GNORM_HISTORY, percentile),
            HISTORY=GNORM_HISTORY,
            COLUMNS=next_power(GNORM_HISTORY),
        )
    current, clip_value, scale = results
    return current, clip_value, scale


@triton.jit
def _squares(grad, partials, n, SIZE: tl.constexpr):
    first, count = share(n, SIZE)
    element = tl.arange(0, SIZE)
    x = tl.load(grad + first + element, mask=element < count, other=0.0).to(tl.float32)
    tl.store(partials + tl.program_id(0), tl.sum(x * x, 0))


@triton.jit
def _clip(
    partials, history, current, clip_value, scale, count, stride, slot, percentile,
    HISTORY: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    squared = sum_of(partials, count)
    entry = tl.arange(0, COLUMNS)
    values = tl.load(history + entry * stride, mask=entry < HISTORY, other=0.0)
    values = tl.where(entry == slot, squared, values)
    # The bits of fp32 as integers in the same order, NaN last of the history and what is not of it after that.
    bits = values.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = tl.where(values == values, key, 0x7FFFFFFE)
    key = tl.where(entry < HISTORY, key, 0x7FFFFFFF)
    # A percentile is below 100: the place of each entry, among equals by their order, is that in the sorted history.
    mine, other = entry[:, None], entry[None, :]
    before = (key[None, :] < key[:, None]) | ((key[None, :] == key[:, None]) & (other < mine))
    place = tl.sum(before.to(tl.int32), 1)
    clip = tl.sqrt_rn(tl.sum(tl.where(place == percentile, values, 0.0), 0))
    norm = tl.sqrt_rn(squared)
    clipped = norm > clip
    tl.store(history + slot * stride, squared)
    tl.store(current, norm)
    tl.store(clip_value, clip)
    tl.store(scale, tl.where(clipped, tl.div_rn(clip, tl.where(clipped, norm, 1.0)), 1.0))
