"""Percentiles of gradient norms and quantiles of a tensor."""

from __future__ import annotations

import torch

from .reduction import sum_in_order


def percentile_clipping(
    grad: torch.Tensor, gnorm_vec: torch.Tensor, step: int, percentile: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Writes the squared norm of `grad` to slot `step % 100` of `gnorm_vec`; current norm, clip value and scale.

    The clip value is the root of the entry that has `percentile` of the 100 entries below it; the scale is clip value
    over current norm where the norm is larger, else 1.
    """
    norm_squared = sum_in_order(grad.float().square())
    gnorm_vec[step % gnorm_vec.numel()].copy_(norm_squared)
    current = norm_squared.sqrt()
    clip_value = torch.sort(gnorm_vec).values[percentile].sqrt()
    return current, clip_value, torch.where(current > clip_value, clip_value / current, 1.0)


def estimate_quantiles(A: torch.Tensor, offset: float = 0.001953125, num_quantiles: int = 256) -> torch.Tensor:
    """Quantiles of all elements at `num_quantiles` positions from `offset` to `1 - offset`, evenly spaced, in fp32.

    The quantile at position p of n elements lies at index `p * (n - 1)` of the sorted elements; between two of them it
    is interpolated linearly. NaN counts as larger than any number. A single quantile stands at `offset`.
    """
    values = torch.sort(A.reshape(-1).float()).values
    spacing = (1 - 2 * offset) / max(1, num_quantiles - 1)
    indices = [(offset + i * spacing) * (values.numel() - 1) for i in range(num_quantiles)]
    fraction = torch.tensor([index % 1 for index in indices], dtype=torch.float32, device=A.device)
    low = torch.tensor([int(index) for index in indices], device=A.device)
    high = torch.clamp(low + 1, max=values.numel() - 1)
    return torch.lerp(values.index_select(0, low), values.index_select(0, high), fraction)
