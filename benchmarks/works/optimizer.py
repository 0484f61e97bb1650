"""Steps of Adam, AdamW, Lion and SGD, with state in 8 and in 32 bits."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..work import Contestant, Family, Run, Target, Work
from .common import BITSANDBYTES, COPY, OURS
from .sizes import DTYPES, Sizes, counted

__all__ = ["families"]

FUSED = "torch fused"
TORCHAO = "torchao"
TOLERANCE = 0.02
Maker = Callable[[Sequence[Parameter]], Any]


@dataclass(frozen=True)
class Optimizer:
    """An optimizer, whose class has the same name in every package.

    states: how many tensors of state a parameter has. fused: the dtypes of parameters for which torch has it fused.
    torchao: it is in torchao too; bitsandbytes has all. options: what its class is given, in every package.
    """

    name: str
    states: int
    fused: tuple[str, ...] = ()
    torchao: bool = False
    options: Mapping[str, float] = field(default_factory=dict)


OPTIMIZERS = (
    Optimizer("AdamW", 2, fused=("fp32", "bf16"), torchao=True),
    Optimizer("Adam", 2, fused=("fp32", "bf16"), torchao=True),
    Optimizer("Lion", 1),
    # Fused, torch 2.13 leaves parameters in bf16 as they are: https://github.com/pytorch/pytorch/issues/191763
    Optimizer("SGD", 1, fused=("fp32",), options={"lr": 1e-3, "momentum": 0.9}),
)


@dataclass(frozen=True)
class Inputs:
    """Gradients, and how many bytes of state there are to a parameter."""

    gradients: Sequence[Tensor]
    state_bytes: int

    @property
    def traffic(self) -> int:
        """Parameter and state are read and written, the gradient is read."""
        return sum(3 * gradient.nbytes + 2 * self.state_bytes * gradient.numel() for gradient in self.gradients)


def _inputs(count: int, n: int, dtype: torch.dtype, state_bytes: int) -> Callable[[], Inputs]:
    return lambda: Inputs([torch.randn(n).to(dtype) for _ in range(count)], state_bytes)


def _maker(package: str, name: str, **options: Any) -> Maker:
    return lambda parameters: getattr(importlib.import_module(f"{package}.optim"), name)(parameters, **options)


def _stepper(maker: Maker) -> Callable[[Inputs], Run]:
    def make(inputs: Inputs) -> Run:
        # From zero, the parameters are the sum of the updates, which is what results are compared by.
        parameters = [Parameter(torch.zeros_like(gradient)) for gradient in inputs.gradients]
        for parameter, gradient in zip(parameters, inputs.gradients, strict=True):
            parameter.grad = gradient
        optimizer = maker(parameters)

        def run() -> Sequence[Parameter]:
            optimizer.step()
            return parameters

        return run

    return make


def _updates(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def _contestants(optimizer: Optimizer, bits: int, dtype: str) -> list[Contestant]:
    name, options = f"{optimizer.name}{bits}bit", optimizer.options

    def peer(column: str, maker: Maker, package: str | None = None, threads_of: str = "torch") -> Contestant:
        return Contestant(column, _stepper(maker), TOLERANCE, package, _updates, threads_of=threads_of)

    contestants = [Contestant(OURS, _stepper(_maker(OURS, name, **options)), read=_updates)]
    if dtype in optimizer.fused:
        contestants.append(peer(FUSED, _maker("torch", optimizer.name, fused=True, **options)))
    # With 32 bits its step is made of torch's operators.
    threads_of = BITSANDBYTES if bits == 8 else "torch"
    contestants.append(peer(BITSANDBYTES, _maker(BITSANDBYTES, name, **options), BITSANDBYTES, threads_of))
    if optimizer.torchao and bits == 8:
        contestants.append(peer(TORCHAO, _maker(TORCHAO, name, **options), TORCHAO))
    return [*contestants, COPY]


def _family(optimizer: Optimizer, sizes: Sizes) -> Family:
    def work(bits: int, count: int, n: int, dtype: str, *targets: Target) -> Work:
        name = f"{optimizer.name.lower()}{bits}bit/{f'{count}x' if count > 1 else ''}{counted(n)}/{dtype}"
        inputs = _inputs(count, n, DTYPES[dtype], optimizer.states * bits // 8)
        faster = Target(FUSED if dtype in optimizer.fused else BITSANDBYTES, 1)
        return Work(name, inputs, _contestants(optimizer, bits, dtype), (*targets, faster))

    large, piece, small = sizes.elements(1 << 24), sizes.elements(1 << 18), 1 << 12
    much_faster = [Target(BITSANDBYTES, 20)] if optimizer.states == 2 else []  # was set for Adam
    works = [
        work(8, 1, large, "fp32", *much_faster),
        work(8, 1, large, "bf16"),
        work(8, 300, small, "fp32"),
        work(32, 1, large, "fp32"),
        work(32, 1, large, "bf16"),
        work(32, 300, small, "fp32"),
    ]
    if optimizer.name == "AdamW":
        works += [
            work(8, 64, piece, "fp32", *much_faster),
            work(8, 1, 1 << 14, "fp32"),
            work(8, 1, 1 << 16, "fp32"),
            work(32, 64, piece, "fp32"),
        ]
    return Family(f"{optimizer.name} step", works)


def families(sizes: Sizes) -> list[Family]:
    """Of each optimizer one large parameter and many small ones in one step; of AdamW more sizes."""
    return [_family(optimizer, sizes) for optimizer in OPTIMIZERS]
