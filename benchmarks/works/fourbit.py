"""4-bit quantization: NF4 in blocks of 64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..work import Contestant, Family, Run, Target, Work
from .common import BITSANDBYTES, COPY, OURS, op_of, torchao_nf4
from .sizes import DTYPES, MODEL_SHAPES, SMALL, Sizes, counted

__all__ = ["families"]

BLOCKSIZE = 64
TYPE = "nf4"


@dataclass(frozen=True)
class Inputs:
    """A weight and what it is in 4 bits."""

    A: Tensor
    packed: Tensor
    absmax: Tensor

    @property
    def traffic(self) -> int:
        return self.A.nbytes + self.packed.nbytes + self.absmax.nbytes


def _inputs(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], Inputs]:
    def make() -> Inputs:
        A = (0.02 * torch.randn(shape)).to(dtype)
        return Inputs(A, *torch.ops.bnb_core.quantize_4bit(A, BLOCKSIZE, TYPE, torch.uint8))

    return make


def _values(result: tuple[Tensor, Tensor]) -> Tensor:
    packed, absmax = result
    args = (BLOCKSIZE, TYPE, [2 * packed.numel()], torch.float32)
    values: Tensor = torch.ops.bnb_core.dequantize_4bit(packed, absmax, *args)
    return values


def _quantizer(package: str) -> Callable[[Inputs], Run]:
    def make(inputs: Inputs) -> Run:
        op = op_of(package, "quantize_4bit")
        return lambda: op(inputs.A, BLOCKSIZE, TYPE, torch.uint8)

    return make


def _dequantizer(package: str) -> Callable[[Inputs], Run]:
    def make(inputs: Inputs) -> Run:
        op, shape, dtype = op_of(package, "dequantize_4bit"), list(inputs.A.shape), inputs.A.dtype
        return lambda: op(inputs.packed, inputs.absmax, BLOCKSIZE, TYPE, shape, dtype)

    return make


def _torchao_quantizer(inputs: Inputs) -> Run:
    return torchao_nf4(inputs.A, BLOCKSIZE)


def _torchao_dequantizer(inputs: Inputs) -> Run:
    weight: Any = _torchao_quantizer(inputs)()
    return lambda: weight.get_original_weight()


QUANTIZERS = (
    Contestant(OURS, _quantizer(OURS), read=_values),
    Contestant(BITSANDBYTES, _quantizer(BITSANDBYTES), 1e-2, BITSANDBYTES, _values, threads_of=BITSANDBYTES),
    # Its scales are 8 bits wide too, always.
    Contestant("torchao", _torchao_quantizer, 0.05, "torchao", lambda weight: weight.get_original_weight()),
    COPY,
)
DEQUANTIZERS = (
    Contestant(OURS, _dequantizer(OURS)),
    Contestant(BITSANDBYTES, _dequantizer(BITSANDBYTES), 1e-2, BITSANDBYTES, threads_of=BITSANDBYTES),
    Contestant("torchao", _torchao_dequantizer, 0.05, "torchao"),
    COPY,
)
FASTER = (Target(BITSANDBYTES, 1),)
QUANTIZING = (Target(BITSANDBYTES, 40, hope=80),)
DEQUANTIZING = (Target(BITSANDBYTES, 1.2), Target("copy", 0.6))


def families(sizes: Sizes) -> list[Family]:
    """Quantizing and dequantizing whole weights, those of models, and small ones."""

    def work(
        op: str, shape: tuple[int, ...], dtype: str, contestants: tuple[Contestant, ...], targets: tuple[Target, ...]
    ) -> Work:
        name = "x".join(map(str, shape)) if len(shape) > 1 else counted(shape[0])
        return Work(f"{op}/{name}/{dtype}", _inputs(shape, DTYPES[dtype]), contestants, targets)

    large, medium = (sizes.elements(1 << 24),), (sizes.elements(1 << 22),)
    models = [(sizes.width(n), sizes.width(k)) for k, n in MODEL_SHAPES]
    small = [(n,) for n in SMALL]
    both = ("fp32", "bf16")
    quantize = [work("quantize_4bit", large, dtype, QUANTIZERS, QUANTIZING) for dtype in both]
    quantize += [work("quantize_4bit", shape, "bf16", QUANTIZERS, FASTER) for shape in (*models, *small)]
    dequantize = [work("dequantize_4bit", medium, dtype, DEQUANTIZERS, DEQUANTIZING) for dtype in both]
    dequantize += [work("dequantize_4bit", shape, "bf16", DEQUANTIZERS, DEQUANTIZING) for shape in models]
    dequantize += [work("dequantize_4bit", shape, "bf16", DEQUANTIZERS, FASTER) for shape in small]
    return [
        Family("4-bit quantization, NF4 in blocks of 64", quantize),
        Family("4-bit dequantization, NF4 in blocks of 64", dequantize),
    ]
