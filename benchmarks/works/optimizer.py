"""Steps of AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..work import Contestant, Family, Run, Target, Work
from .common import BITSANDBYTES, COPY, OURS
from .sizes import DTYPES, Sizes, counted

__all__ = ["families"]

FUSED = "torch fused"
Maker = Callable[[Sequence[Parameter]], torch.optim.Optimizer]


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


def _ours_8bit(parameters: Sequence[Parameter]) -> torch.optim.Optimizer:
    from bnb_core.optim import AdamW8bit

    return AdamW8bit(parameters)


def _ours_32bit(parameters: Sequence[Parameter]) -> torch.optim.Optimizer:
    from bnb_core.optim import AdamW32bit

    return AdamW32bit(parameters)


def _bitsandbytes_8bit(parameters: Sequence[Parameter]) -> Any:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters)


def _bitsandbytes_32bit(parameters: Sequence[Parameter]) -> Any:
    from bitsandbytes.optim import AdamW32bit

    return AdamW32bit(parameters)


def _torchao_8bit(parameters: Sequence[Parameter]) -> Any:
    from torchao.optim import AdamW8bit

    return AdamW8bit(parameters)


def _torch_fused(parameters: Sequence[Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


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


TOLERANCE = 0.02
IN_8BIT = (
    Contestant(OURS, _stepper(_ours_8bit), read=_updates),
    Contestant(FUSED, _stepper(_torch_fused), TOLERANCE, read=_updates),
    Contestant(BITSANDBYTES, _stepper(_bitsandbytes_8bit), TOLERANCE, BITSANDBYTES, _updates, threads_of=BITSANDBYTES),
    Contestant("torchao", _stepper(_torchao_8bit), TOLERANCE, "torchao", _updates),
    COPY,
)
IN_32BIT = (
    Contestant(OURS, _stepper(_ours_32bit), read=_updates),
    Contestant(FUSED, _stepper(_torch_fused), TOLERANCE, read=_updates),
    Contestant(BITSANDBYTES, _stepper(_bitsandbytes_32bit), TOLERANCE, BITSANDBYTES, _updates),
    COPY,
)


def families(sizes: Sizes) -> list[Family]:
    """One large parameter, many in one step, and small ones."""

    def work(bits: int, count: int, n: int, dtype: str, targets: tuple[Target, ...]) -> Work:
        name = f"adamw{bits}bit/{f'{count}x' if count > 1 else ''}{counted(n)}/{dtype}"
        state_bytes, contestants = (2, IN_8BIT) if bits == 8 else (8, IN_32BIT)
        return Work(name, _inputs(count, n, DTYPES[dtype], state_bytes), contestants, targets)

    large, piece = sizes.elements(1 << 24), sizes.elements(1 << 18)
    in_8bit, faster = (Target(BITSANDBYTES, 20), Target(FUSED, 1)), (Target(FUSED, 1),)
    works = [
        work(8, 1, large, "fp32", in_8bit),
        work(8, 1, large, "bf16", faster),
        work(8, 64, piece, "fp32", in_8bit),
        work(8, 1, 1 << 14, "fp32", faster),
        work(8, 1, 1 << 16, "fp32", faster),
        work(32, 1, large, "fp32", faster),
        work(32, 64, piece, "fp32", faster),
    ]
    return [Family("AdamW step", works)]
