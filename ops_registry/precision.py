"""Full precision for the fp32 products of torch that a kernel makes use of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["fp32_product", "full_fp32"]


class _Precision:
    """Who wants full fp32 now, in all threads: the settings are the process's, so the last to leave restores them."""

    lock = threading.Lock()
    inside = 0
    restore: Callable[[], None] = staticmethod(lambda: None)


@contextmanager
def full_fp32() -> Iterator[None]:
    """Within it no backend computes fp32 products in TF32 or bf16. Changes nothing where none would."""
    with _Precision.lock:
        if not _Precision.inside:
            _Precision.restore = staticmethod(_raise_precision())
        _Precision.inside += 1
    try:
        yield
    finally:
        with _Precision.lock:
            _Precision.inside -= 1
            if not _Precision.inside:
                _Precision.restore()


def fp32_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b.T` in full fp32, whatever the process allows for fp32 products; a [M, K] and b [N, K] in fp32."""
    result = torch.empty(a.shape[0], b.shape[0], dtype=torch.float32, device=a.device)
    with full_fp32():
        # A product that is told where to write is left alone by autocast, and needs operands without a gradient.
        torch.mm(a.detach(), b.detach().t(), out=result)
    return result


def _raise_precision() -> Callable[[], None]:
    """Sets full precision where it is not; returns what undoes it."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch < 2.9: one setting for all backends
        before = torch.get_float32_matmul_precision()
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
        return lambda: None if before == "highest" else torch.set_float32_matmul_precision(before)
    # Later each backend has its own, which reads as the general one where it was not set; the old setting cannot even
    # be read once they disagree.
    backends: Any = torch.backends
    settings = ((s, s.fp32_precision) for s in (backends.cuda.matmul, backends.mkldnn.matmul))
    reduced = [(setting, before) for setting, before in settings if before not in ("none", "ieee")]
    for setting, _ in reduced:
        setting.fp32_precision = "ieee"

    def restore() -> None:
        for setting, before in reduced:
            setting.fp32_precision = "none" if before == backends.fp32_precision else before

    return restore
