"""Results in buffers that the caller gives."""

from __future__ import annotations

from torch import Tensor

__all__ = ["copied_to"]


def copied_to(out: Tensor | None, value: Tensor, name: str = "out") -> Tensor:
    """`value`, in `out` where one is given. Raises ValueError where that has another shape, dtype or device."""
    if out is None:
        return value
    if (out.shape, out.dtype, out.device) != (value.shape, value.dtype, value.device):
        raise ValueError(
            f"{name} is {out.dtype} {tuple(out.shape)} on {out.device}, "
            f"expected {value.dtype} {tuple(value.shape)} on {value.device}"
        )
    return out.copy_(value)
