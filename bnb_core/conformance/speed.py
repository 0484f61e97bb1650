"""How fast a kernel is beside the reference on the same device, and beside a copy of as many bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnb_core.ops_registry import OPS, force, kernel_named
from bnb_core.ops_registry.cases import Maker, tensors
from bnb_core.ops_registry.codebooks import dynamic_map

from .findings import Speed

__all__ = ["Sizes", "arguments", "speed_of"]

COLUMNS, TOKENS = 2048, 16
ROUNDS, SECONDS = 5, 0.01  # of each contestant, in turns; at least so long a round


def speed_of(op: str, device: str, kernel: str) -> Speed | None:
    """The best of interleaved rounds; None for the reference, and where the kernel does not take what is timed.

    Raises ValueError for a kernel that is not there.
    """
    row = kernel_named(kernel, op, device)
    if row.is_reference:
        return None
    make = Sizes(device, "quick", seed=0)
    args = arguments(op, make)
    if row.refuses(args) is not None:
        return None
    called = getattr(torch.ops.bnb_core, op).default
    with force(kernel):
        outcome = OPS[op].outcome(called(*args), args)
    moved = sum(tensor.nbytes for tensor in tensors([args, outcome]))
    source = torch.ones(max(1, moved // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def forced(name: str) -> Callable[[], Any]:
        def run() -> Any:
            with force(name):
                return called(*args)

        return run

    contestants = (forced(kernel), forced("reference"), lambda: target.copy_(source))
    times = tuple(min(each) for each in zip(*_rounds(contestants, device), strict=True))
    return Speed(moved / 1e6, *times)


def _rounds(contestants: tuple[Callable[[], Any], ...], device: str) -> Iterator[list[float]]:
    """Seconds of one call of each, round by round."""
    # A device without it has computed when a call returns, as the CPU.
    wait = getattr(None if device == "cpu" else torch.get_device_module(device), "synchronize", lambda: None)
    calls = []
    for run in contestants:
        run()
        wait()
        calls.append(max(1, round(SECONDS / _seconds(run, 1, wait))))
    for _ in range(ROUNDS):
        yield [_seconds(run, count, wait) for run, count in zip(contestants, calls, strict=True)]


def _seconds(run: Callable[[], Any], count: int, wait: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    wait()
    return max(time.perf_counter() - start, 1e-9) / count


# -- what is timed ---------------------------------------------------------------------------------------------------

BF16 = torch.bfloat16


def arguments(op: str, make: Sizes) -> tuple[Any, ...]:
    """A call of an operator of the size that it has in a model."""
    return OPS[op].complete(_ARGUMENTS[op](make))


class Sizes(Maker):
    """rows: of weights and gradients; an accelerator takes more to be busy."""

    @property
    def rows(self) -> int:
        return 512 if self.device.type == "cpu" else 8192


def _weight(make: Sizes) -> tuple[Any, ...]:
    """Codes, shape, scales, block size and type of a 4-bit weight."""
    shape = (make.rows, COLUMNS)
    return make.packed(shape), shape, make.absmax(make.rows * COLUMNS, 64), 64, "nf4"


def _experts(make: Sizes) -> tuple[Any, ...]:
    shape = (4, make.rows // 4, COLUMNS)
    ends = make.tensor([4, 8, 12, TOKENS], torch.int64)
    return (
        make.normal(TOKENS, COLUMNS, dtype=BF16),
        make.packed(shape),
        shape,
        make.absmax(make.rows * COLUMNS, 64),
        64,
        "nf4",
        ends,
    )


def _dequantize_4bit(make: Sizes) -> tuple[Any, ...]:
    codes, shape, absmax, *how = _weight(make)
    return codes, absmax, *how, shape, BF16


def _code(make: Sizes, signed: bool = True) -> Tensor:
    return dynamic_map(signed).to(make.device)


def _products(make: Sizes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """int8 rows and weights, and the scales of both."""
    return make.int8(TOKENS, COLUMNS), make.int8(make.rows, COLUMNS), make.positive(TOKENS), make.positive(make.rows)


def _mixed(make: Sizes) -> tuple[Any, ...]:
    A = make.normal(TOKENS, COLUMNS, dtype=BF16)
    return A, *_products(make), make.tensor([3, 500], torch.int64)


def _linear(make: Sizes) -> tuple[Any, ...]:
    _, codes, _, scales = _products(make)
    return make.normal(TOKENS, COLUMNS, dtype=BF16), codes, scales


def _mm_dequant(make: Sizes) -> tuple[Any, ...]:
    sums = make.integers(make.rows, COLUMNS, low=-(2**20), high=2**20, dtype=torch.int32)
    return sums, make.positive(make.rows), make.positive(COLUMNS), BF16


_ADAM = (0.9, 0.999, 0.0, 0.0, 1e-8)


def _optimizer(make: Sizes, bits: str, lists: bool) -> tuple[Any, ...]:
    shape = (make.rows, COLUMNS)
    g, p = make.normal(*shape), make.normal(*shape)
    if bits == "32bit":
        tensors = [g, p, make.normal(*shape) * 0.1, make.normal(*shape).abs() * 0.1]
        if lists:
            clock = (make.tensor(3.0), make.tensor(1e-4))
            return "adam", *([t] for t in tensors), None, *clock, 0.0, *_ADAM, 0.0, 1.0
        return "adam", *tensors, None, 0.0, 0.0, *_ADAM, 0.0, 3, 1e-4, 1.0
    tensors = [g, p, make.bytes(*shape), make.bytes(*shape)]
    scales = [make.absmax(make.rows * COLUMNS, 256) if bits == "8bit_blockwise" else make.positive(1) for _ in range(2)]
    maps = _code(make), _code(make, signed=False)
    if lists:
        clock = (make.tensor(3.0), make.tensor(1e-4))
        return "adam", *([t] for t in tensors), *maps, *([s] for s in scales), *clock, *_ADAM, 0.0, 1.0
    return "adam", *tensors, *_ADAM, 3, 1e-4, *maps, *scales, 0.0, 1.0


_ARGUMENTS: dict[str, Callable[[Sizes], tuple[Any, ...]]] = {
    "quantize_blockwise": lambda make: (make.normal(make.rows, COLUMNS, dtype=BF16), _code(make), 256),
    "dequantize_blockwise": lambda make: (
        *(make.bytes(make.rows, COLUMNS), make.absmax(make.rows * COLUMNS, 256), _code(make), 256, BF16),
    ),
    "quantize_4bit": lambda make: (make.normal(make.rows, COLUMNS, dtype=BF16), 64, "nf4", torch.uint8),
    "dequantize_4bit": _dequantize_4bit,
    "gemm_4bit": lambda make: (make.normal(TOKENS, COLUMNS, dtype=BF16), *_weight(make)),
    "grouped_gemm_4bit": _experts,
    "embedding_4bit": lambda make: (
        *(make.integers(make.rows, low=0, high=make.rows, dtype=torch.int64), *_weight(make), BF16),
    ),
    "int8_vectorwise_quant": lambda make: (make.normal(make.rows, COLUMNS, dtype=BF16), 0.0),
    "int8_vectorwise_quant_mask": lambda make: (make.normal(make.rows, COLUMNS, dtype=BF16), 3.0),
    "int8_vectorwise_dequant": lambda make: (make.int8(make.rows, COLUMNS), make.positive(make.rows)),
    "int8_double_quant": lambda make: (make.normal(make.rows, COLUMNS, dtype=BF16), 0.0),
    "int8_mm": lambda make: _products(make)[:2],
    "int8_mm_dequant": _mm_dequant,
    "int8_scaled_mm": lambda make: (*_products(make), None, BF16),
    "int8_mixed_scaled_mm": _mixed,
    "int8_linear": _linear,
    **{
        f"optimizer_{form}_{bits}": partial(_optimizer, bits=bits, lists=form == "step")
        for bits in ("32bit", "8bit", "8bit_blockwise")
        for form in ("update", "step")
    },
    "percentile_clipping": lambda make: (make.normal(make.rows, COLUMNS), make.positive(100), 3),
    "estimate_quantiles": lambda make: (make.normal(make.rows, COLUMNS),),
}
