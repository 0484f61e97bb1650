"""What the machine can do: bytes moved by a copy, and products in each dtype."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .timing import seconds_of

__all__ = ["Limit", "measure_limits"]

REPEATS = 7


@dataclass(frozen=True)
class Limit:
    """A rate: median over the repeats, and the best; `unit` is a count per second."""

    name: str
    unit: str
    median: float
    best: float


def _copy(count: int) -> Callable[[], Any]:
    source, target = torch.ones(count // 4), torch.ones(count // 4)
    return lambda: target.copy_(source)


def _product(n: int, dtype: torch.dtype) -> Callable[[], Any]:
    A, B = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return lambda: A @ B


def _int_product(n: int) -> Callable[[], Any]:
    A, B = (torch.randint(-127, 128, (n, n), dtype=torch.int8) for _ in range(2))
    return lambda: torch._int_mm(A, B.t())


def measure_limits(scale: float = 1.0) -> list[Limit]:
    """The limits, in about ten seconds; a smaller scale measures smaller ones."""
    large, n = max(1 << 20, int((1 << 28) * scale)), max(128, int(1024 * scale**0.5) // 64 * 64)
    operations = 2 * n**3
    todo = [(f"copy of {size >> 10} KB", "B/s", 2 * size, _copy(size)) for size in (1 << 14, 1 << 20, large)]
    todo += [
        (f"{name} product of {n}x{n}", "FLOP/s", operations, _product(n, dtype))
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    ]
    todo.append((f"torch._int_mm of {n}x{n}", "OP/s", operations, _int_product(n)))
    return [_rate(*limit) for limit in todo]


def _rate(name: str, unit: str, work: int, run: Callable[[], Any]) -> Limit:
    run()
    calls = max(1, int(2e-3 / max(seconds_of(run, 1), 1e-7)))
    times = [seconds_of(run, calls) for _ in range(REPEATS)]
    return Limit(name, unit, work / statistics.median(times), work / min(times))
