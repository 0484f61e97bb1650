"""The sentences that refuse bad input: operator, argument, found and expected.

Everything goes through `torch._check`, so that symbolic and unbacked sizes pass where they may. Nothing here reads
data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

__all__ = ["Check", "ceil_div", "product", "row_count"]


def ceil_div(a: Any, b: int) -> Any:
    """⌈a / b⌉ for integers and symbolic integers."""
    return (a + b - 1) // b


def product(sizes: Sequence[Any]) -> Any:
    """Product of sizes, symbolic ones too; 1 for no sizes."""
    result = 1
    for size in sizes:
        result = result * size
    return result


def row_count(A: torch.Tensor) -> Any:
    """How many rows `[..., K]` has: the product of its leading sizes."""
    return product(A.shape[:-1])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Check:
    """The checks of one operator; each raises RuntimeError with a sentence that begins with the operator's name."""

    def __init__(self, op: str) -> None:
        self._op = op

    def that(self, condition: Any, sentence: Callable[[], str]) -> None:
        """Raises with `sentence()` unless `condition` holds; a symbolic one becomes a guard or a run-time assertion."""
        if condition is not True:
            torch._check(condition, lambda: f"bnb_core::{self._op}: {sentence()}")

    def dtype(self, name: str, tensor: torch.Tensor, allowed: Collection[torch.dtype]) -> None:
        self.that(tensor.dtype in allowed, lambda: f"{name} is {_name(tensor.dtype)}, expected {_names(allowed)}")

    def value(self, name: str, value: Any, allowed: Collection[Any]) -> None:
        self.that(value in allowed, lambda: f"{name} is {_show(value)}, expected {_names(allowed)}")

    def at_least(self, name: str, value: Any, least: float) -> None:
        self.that(value >= least, lambda: f"{name} is {value}, expected at least {least}")

    def one_device(self, first: torch.Tensor, **tensors: torch.Tensor | None) -> None:
        device = first.device
        for name, tensor in tensors.items():
            if tensor is not None and tensor.device != device:
                sentence = f"{name} is on {tensor.device}, expected {device} as the other tensors"
                self.that(False, sentence.__str__)

    def ndim(self, name: str, tensor: torch.Tensor, count: int) -> None:
        self.that(tensor.ndim == count, lambda: f"{name} has {tensor.ndim} dimensions, expected {count}")

    def at_least_1d(self, name: str, tensor: torch.Tensor) -> None:
        self.that(tensor.ndim >= 1, lambda: f"{name} is a scalar, expected at least 1 dimension")

    def numel(self, name: str, tensor: torch.Tensor, count: Any, because: Callable[[], str]) -> None:
        self.that(
            tensor.numel() == count, lambda: f"{name} has {tensor.numel()} elements, but {because()} needs {count}"
        )

    def shape(self, name: str, tensor: torch.Tensor, shape: Sequence[Any]) -> None:
        def sentence() -> str:
            return f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}"

        self.that(tensor.ndim == len(shape), sentence)
        for found, expected in zip(tensor.shape, shape, strict=True):
            self.that(found == expected, sentence)

    def code(self, name: str, code: torch.Tensor) -> None:
        """A codebook: fp32, one dimension, at most 256 entries."""
        self.dtype(name, code, (torch.float32,))
        self.ndim(name, code, 1)
        entries = code.shape[0]
        self.that(entries >= 1, lambda: f"{name} has {entries} entries, expected 1 to 256")
        self.that(entries <= 256, lambda: f"{name} has {entries} entries, expected 1 to 256")

    def absmax(self, name: str, absmax: torch.Tensor, elements: Any, blocksize: int, of: Callable[[], str]) -> None:
        """Scales: fp32, one per block of `blocksize` of `elements` elements."""
        self.dtype(name, absmax, (torch.float32,))
        self.numel(name, absmax, ceil_div(elements, blocksize), lambda: f"{of()} with blocksize {blocksize}")


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value).removeprefix("torch.")


def _names(allowed: Collection[Any]) -> str:
    names = [_show(value) for value in allowed]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
