"""Blockwise 8-bit quantization with the dynamic map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bnb_core.ops_registry.codebooks import dynamic_map

from ..work import Budget, Contestant, Family, Run, Target, Work
from .common import BITSANDBYTES, COPY, OURS, op_of
from .sizes import DTYPES, SMALL, Sizes, counted

__all__ = ["families"]

BLOCKSIZE = 4096


@dataclass(frozen=True)
class Inputs:
    """Values of a normal distribution, and their codes."""

    A: Tensor
    q: Tensor
    absmax: Tensor
    code: Tensor

    @property
    def traffic(self) -> int:
        return self.A.nbytes + self.q.nbytes + self.absmax.nbytes


def _inputs(n: int, dtype: torch.dtype) -> Callable[[], Inputs]:
    def make() -> Inputs:
        A, code = torch.randn(n).to(dtype), dynamic_map()
        q, absmax = torch.ops.bnb_core.quantize_blockwise(A, code, BLOCKSIZE)
        return Inputs(A, q, absmax, code)

    return make


def _values(result: tuple[Tensor, Tensor]) -> Tensor:
    values: Tensor = torch.ops.bnb_core.dequantize_blockwise(*result, dynamic_map(), BLOCKSIZE, torch.float32)
    return values


def _quantizer(package: str) -> Callable[[Inputs], Run]:
    def make(inputs: Inputs) -> Run:
        op = op_of(package, "quantize_blockwise")
        return lambda: op(inputs.A, inputs.code, BLOCKSIZE)

    return make


def _dequantizer(package: str) -> Callable[[Inputs], Run]:
    def make(inputs: Inputs) -> Run:
        op, dtype = op_of(package, "dequantize_blockwise"), inputs.A.dtype
        return lambda: op(inputs.q, inputs.absmax, inputs.code, BLOCKSIZE, dtype)

    return make


def _dequantizer_out(package: str) -> Callable[[Inputs], Run]:
    def make(inputs: Inputs) -> Run:
        op, dtype, out = op_of(package, "dequantize_blockwise").out, inputs.A.dtype, torch.zeros_like(inputs.A)

        def run() -> Tensor:
            op(inputs.q, inputs.absmax, inputs.code, BLOCKSIZE, dtype, out=out)
            return out

        return run

    return make


QUANTIZERS = (
    Contestant(OURS, _quantizer(OURS), read=_values),
    # Not every code of theirs is the nearest.
    Contestant(BITSANDBYTES, _quantizer(BITSANDBYTES), 1e-2, BITSANDBYTES, _values, threads_of=BITSANDBYTES),
    COPY,
)
DEQUANTIZERS = (
    Contestant(OURS, _dequantizer(OURS)),
    Contestant(BITSANDBYTES, _dequantizer(BITSANDBYTES), 1e-2, BITSANDBYTES, threads_of=BITSANDBYTES),
    COPY,
)
DEQUANTIZERS_OUT = (
    Contestant(OURS, _dequantizer_out(OURS)),
    Contestant(BITSANDBYTES, _dequantizer(BITSANDBYTES), 1e-2, BITSANDBYTES, threads_of=BITSANDBYTES),
    COPY,
)
FASTER = (Target(BITSANDBYTES, 1),)
QUANTIZING = (Target(BITSANDBYTES, 10, hope=20),)
DEQUANTIZING = (Target(BITSANDBYTES, 1.2), Target("copy", 0.6))


def families(sizes: Sizes) -> list[Family]:
    """Quantizing and dequantizing: large as an optimizer's state or a checkpoint's, and small."""

    def work(
        op: str, n: int, dtype: str, contestants: tuple[Contestant, ...], targets: tuple[Target | Budget, ...]
    ) -> Work:
        return Work(f"{op}/{counted(n)}/{dtype}", _inputs(n, DTYPES[dtype]), contestants, targets)

    large, medium = sizes.elements(1 << 24), sizes.elements(1 << 22)
    quantize = [work("quantize_blockwise", large, dtype, QUANTIZERS, QUANTIZING) for dtype in ("fp32", "bf16")]
    quantize += [work("quantize_blockwise", n, "fp32", QUANTIZERS, FASTER) for n in SMALL]
    forms = (("dequantize_blockwise", DEQUANTIZERS), ("dequantize_blockwise.out", DEQUANTIZERS_OUT))
    dequantize = [
        work(name, n, dtype, contestants, DEQUANTIZING)
        for n in (medium, large)
        for dtype in ("fp32", "bf16")
        for name, contestants in forms
    ]
    dequantize += [work("dequantize_blockwise", n, "fp32", DEQUANTIZERS, FASTER) for n in SMALL]
    return [
        Family(f"Blockwise 8-bit quantization, blocks of {BLOCKSIZE}", quantize),
        Family(f"Blockwise 8-bit dequantization, blocks of {BLOCKSIZE}", dequantize),
    ]
