"""Results in buffers that the caller gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_buffer", "copied_to"]


def check_buffer(
    out: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device, name: str = "out"
) -> None:
    """Raises ValueError where `out` has another shape, dtype or device."""
    if (tuple(out.shape), out.dtype, out.device) != (tuple(shape), dtype, device):
        raise ValueError(
            f"{name} is {out.dtype} {tuple(out.shape)} on {out.device}, expected {dtype} {tuple(shape)} on {device}"
        )


def copied_to(out: Tensor | None, value: Tensor, name: str = "out") -> Tensor:
    """`value`, in `out` where one is given. Raises ValueError where that has another shape, dtype or device."""
    if out is None:
        return value
    check_buffer(out, value.shape, value.dtype, value.device, name)
    return out.copy_(value)
