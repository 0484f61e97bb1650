"""Percentiles of gradient norms and quantiles of a tensor on NVIDIA GPUs."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.memory import NAMES, new_tensor

from .streams import place


class Statistics:
    """The kernels of a native module."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def percentile_clipping(
        self, grad: Tensor, gnorm_vec: Tensor, step: int, percentile: int = 5
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The norm of `grad`, a percentile of the last norms, and the scale that clips the one to the other."""
        grad, history = grad.contiguous(), gnorm_vec.contiguous()
        parts = ceil_div(grad.numel(), self._native.SQUARES_PART)
        partials = new_tensor(grad, parts, dtype=torch.float32)
        norm, clip, scale = (new_tensor(grad, dtype=torch.float32) for _ in range(3))
        self._native.percentile_clipping(
            *place(grad),
            *(grad.data_ptr(), NAMES[grad.dtype], grad.numel(), partials.data_ptr()),
            *(history.data_ptr(), step % history.numel(), percentile),
            *(norm.data_ptr(), clip.data_ptr(), scale.data_ptr()),
        )
        if history is not gnorm_vec:
            gnorm_vec.copy_(history)
        return norm, clip, scale

    def estimate_quantiles(self, A: Tensor, offset: float = 0.001953125, num_quantiles: int = 256) -> Tensor:
        """Quantiles at positions evenly spaced from `offset` to `1 - offset`, between two elements interpolated."""
        values = torch.sort(A.reshape(-1).float()).values
        out = new_tensor(A, num_quantiles, dtype=torch.float32)
        spacing = (1 - 2 * offset) / max(1, num_quantiles - 1)
        self._native.quantiles(
            *place(A), values.data_ptr(), values.numel(), offset, spacing, num_quantiles, out.data_ptr()
        )
        return out
