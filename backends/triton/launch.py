"""How kernels are launched, and what they share."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["INTERPRETED", "next_power", "on_device", "positions", "rounded", "share"]

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def on_device(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Makes the device of a tensor the current one: Triton launches there, on its current stream."""
    if tensor.device.type == "cpu":
        return nullcontext()
    return torch.get_device_module(tensor.device.type).device(tensor.device)


def next_power(number: int) -> int:
    """The power of two that is not below it."""
    return 1 << max(0, number - 1).bit_length()


@triton.jit
def positions(SIZE: tl.constexpr):
    """The elements of a program in one dimension, in 64 bits."""
    return tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)


@triton.jit
def share(n, SIZE: tl.constexpr):
    """The first element of a program, in 64 bits, and how many there are from it on, at most SIZE.

    What a program adds to its first address fits in 32 bits: half the registers of an address for each element.
    """
    first = tl.program_id(0).to(tl.int64) * SIZE
    return first, tl.minimum(n - first, SIZE).to(tl.int32)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """fp32 rounded to nearest, ties to even. The interpreter would cut bf16 off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        upper = tl.where(x == x, upper, 0x7FC0)
        return upper.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)
