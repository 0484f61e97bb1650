"""What single programs make of the results of many, in an order that their number alone decides."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["largest_of", "sum_of"]

SIZE = tl.constexpr(1024)  # partial results that a program adds at a time


@triton.jit
def sum_of(partials, count):
    """The sum of `count` fp32 numbers, by one program: first in columns, then across."""
    column = tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for start in range(0, count, SIZE):
        total += tl.load(partials + start + column, mask=start + column < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def largest_of(partials, count):
    """The largest of `count` fp32 numbers, none of them NaN or below 0, by one program."""
    column = tl.arange(0, SIZE)
    largest = tl.zeros((SIZE,), tl.float32)
    for start in range(0, count, SIZE):
        largest = tl.maximum(largest, tl.load(partials + start + column, mask=start + column < count, other=0.0))
    return tl.max(largest, 0)
