"""Row-wise int8 quantization, as LLM.int8() does it to the input of each layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..work import Contestant, Family, Run, Target, Work
from .common import BITSANDBYTES, COPY, OURS, op_of
from .sizes import Sizes

__all__ = ["families"]

OUTLIER = 6.0


@dataclass(frozen=True)
class Inputs:
    """Rows of fp16 values."""

    A: Tensor

    @property
    def traffic(self) -> int:
        return self.A.nbytes + self.A.numel() + 4 * len(self.A)


def _inputs(rows: int, columns: int, outliers: bool) -> Callable[[], Inputs]:
    def make() -> Inputs:
        A = torch.randn(rows, columns).clamp(-5, 5)
        if outliers:  # a handful of columns, as in trained language models (arXiv:2208.07339)
            A[:, :: columns // 8] *= 10
        return Inputs(A.half())

    return make


def _quantizer(package: str, threshold: float) -> Callable[[Inputs], Run]:
    def make(inputs: Inputs) -> Run:
        op = op_of(package, "int8_vectorwise_quant")
        return lambda: op(inputs.A, threshold)

    return make


def _values(result: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
    q, absmax, _ = result
    return q.float() * absmax.float().reshape(-1, 1)


def _contestants(threshold: float) -> tuple[Contestant, ...]:
    theirs = _quantizer(BITSANDBYTES, threshold)
    return (
        Contestant(OURS, _quantizer(OURS, threshold), read=_values),
        Contestant(BITSANDBYTES, theirs, 1e-2, BITSANDBYTES, _values, threads_of=BITSANDBYTES),
        COPY,
    )


def families(sizes: Sizes) -> list[Family]:
    """A large matrix, with and without outlier columns, and small ones."""

    def work(rows: int, columns: int, threshold: float, target: Target) -> Work:
        name = f"int8_vectorwise_quant/{rows}x{columns}/fp16" + ("/outliers" if threshold else "")
        return Work(name, _inputs(rows, columns, threshold > 0), _contestants(threshold), (target,))

    width = sizes.width(4096)
    works = [work(width, width, threshold, Target(BITSANDBYTES, 20)) for threshold in (0.0, OUTLIER)]
    works += [work(rows, 1024, 0.0, Target(BITSANDBYTES, 1)) for rows in (1, 4, 16, 64)]
    return [Family("int8 quantization of rows", works)]
