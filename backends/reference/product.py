"""The fp32 matrix product behind every operator that multiplies."""

from __future__ import annotations

import torch

from bnb_core.ops_registry.precision import full_fp32


def fp32_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b.T` in full fp32, whatever the process allows for fp32 products; a [M, K] and b [N, K] in fp32."""
    result = torch.empty(a.shape[0], b.shape[0], dtype=torch.float32, device=a.device)
    with full_fp32():
        # A product that is told where to write is left alone by autocast, and needs operands without a gradient.
        torch.mm(a.detach(), b.detach().t(), out=result)
    return result
