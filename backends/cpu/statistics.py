"""Percentiles of gradient norms and quantiles of a tensor on the CPU."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from bnb_core.ops_registry.memory import NAMES

from .levels import at_each_level


class Statistics:
    """The kernels of one level."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def percentile_clipping(
        self, grad: Tensor, gnorm_vec: Tensor, step: int, percentile: int = 5
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The norm of `grad`, a percentile of the last norms, and the scale that clips the one to the other."""
        grad, history = grad.contiguous(), gnorm_vec.contiguous()
        numbers = self._native.percentile_clipping(
            grad.data_ptr(),
            NAMES[grad.dtype],
            grad.numel(),
            history.data_ptr(),
            step % history.numel(),
            percentile,
            torch.get_num_threads(),
        )
        if history is not gnorm_vec:
            gnorm_vec.copy_(history)
        norm, clip, scale = (torch.tensor(number, dtype=torch.float32, device=grad.device) for number in numbers)
        return norm, clip, scale

    def estimate_quantiles(self, A: Tensor, offset: float = 0.001953125, num_quantiles: int = 256) -> Tensor:
        """Quantiles at positions evenly spaced from `offset` to `1 - offset`, between two elements interpolated."""
        A = A.contiguous()
        last = A.numel() - 1
        values, spare = A.new_empty((2, A.numel()), dtype=torch.float32)
        self._native.sort_values(A.data_ptr(), NAMES[A.dtype], A.numel(), values.data_ptr(), spare.data_ptr())
        spacing = (1 - 2 * offset) / max(1, num_quantiles - 1)
        indices = [(offset + i * spacing) * last for i in range(num_quantiles)]
        low = torch.tensor([int(index) for index in indices], device=A.device)
        fraction = torch.tensor([index % 1 for index in indices], dtype=torch.float32, device=A.device)
        return torch.lerp(values[low], values[(low + 1).clamp(max=last)], fraction)


kernels = at_each_level(Statistics)
