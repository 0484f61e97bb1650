"""Inputs for every operator: valid ones, and bad ones with the error they must raise.

A `Maker` builds them on a device from a fixed seed; the modules beside this one say which. The tests,
`opcheck`, the conformance run and the op table of the docs all come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves

from ..checks import ceil_div, product

__all__ = ["BadCase", "Case", "Level", "Maker", "changer", "fresh", "tensors"]

Level = Literal["quick", "full"]


@dataclass(frozen=True)
class Case:
    """Valid arguments of an operator, positionally."""

    name: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class BadCase:
    """Arguments that the operator's check refuses; `error` is found in the message."""

    name: str
    args: tuple[Any, ...]
    error: str


class Maker:
    """Builds tensors on one device, the same ones in every run."""

    def __init__(self, device: torch.device | str, level: Level, seed: int) -> None:
        self.device = torch.device(device)
        self.level = level
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def full(self) -> bool:
        """True where the long lists of sizes are wanted."""
        return self.level == "full"

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
        """Standard normal values times `scale`."""
        return (torch.randn(shape, generator=self._generator) * scale).to(dtype).to(self.device)

    def positive(self, *shape: int) -> torch.Tensor:
        """fp32 values in [0.1, 1.1), as scales are."""
        return (torch.rand(shape, generator=self._generator) + 0.1).to(self.device)

    def integers(self, *shape: int, low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
        """Integers of [low, high)."""
        return torch.randint(low, high, shape, generator=self._generator).to(dtype).to(self.device)

    def bytes(self, *shape: int) -> torch.Tensor:
        return self.integers(*shape, low=0, high=256, dtype=torch.uint8)

    def int8(self, *shape: int) -> torch.Tensor:
        """The codes that row-wise quantization makes: -127 to 127."""
        return self.integers(*shape, low=-127, high=128, dtype=torch.int8)

    def packed(self, shape: Sequence[int], storage: torch.dtype = torch.uint8) -> torch.Tensor:
        """Random 4-bit codes of a tensor of that shape, two to a byte, viewed as `storage`."""
        count = ceil_div(ceil_div(product(shape), 2), storage.itemsize) * storage.itemsize
        return self.bytes(count, 1).view(-1).view(storage).view(-1, 1)

    def absmax(self, elements: int, blocksize: int) -> torch.Tensor:
        return self.positive(ceil_div(elements, blocksize))

    def edge_scales(self) -> torch.Tensor:
        """Of 16 blocks: ties of bf16 and of fp16, subnormal ones, those beyond fp16, zero, NaN, Inf."""
        ties = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11]
        return self.tensor(
            [*ties, 1e-40, 1e-39, 1e-7, 1e-6, 3e-5, 65519.0, 65520.0, 1e6, 3e38, 0.0, torch.nan, torch.inf]
        )

    def tensor(self, values: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)

    def with_zero_block(self, tensor: torch.Tensor, blocksize: int) -> torch.Tensor:
        """The same with its second block all zero."""
        result = tensor.clone()
        result.view(-1)[blocksize : 2 * blocksize] = 0
        return result

    def strided(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values in a tensor that is not contiguous: every other column of a wider one."""
        wide = torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)
        return wide[..., 0]


def changer(good: dict[str, Any]) -> Callable[..., tuple[Any, ...]]:
    """A function that gives the values of `good` with those that it is told otherwise."""
    return lambda **changed: tuple((good | changed).values())


def fresh(args: Sequence[Any]) -> tuple[Any, ...]:
    """A copy of arguments with tensors of their own memory, of the same strides and as far behind its beginning."""
    return tuple(_copy(value) for value in args)


def tensors(values: Any) -> list[torch.Tensor]:
    """The tensors among values, those in lists too."""
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        span = 1 + sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
        memory = value.new_empty(value.storage_offset() + (span if value.numel() else 0))
        return memory.as_strided(value.shape, value.stride(), value.storage_offset()).copy_(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(item) for item in value)
    return value
