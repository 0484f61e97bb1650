"""Optimizer steps of one parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from .buffers import check_buffer

__all__ = ["optimizer_update_8bit", "optimizer_update_32bit", "optimizer_update_8bit_blockwise"]

ops = torch.ops.bnb_core


def optimizer_update_32bit(
    optimizer_name: str,
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    beta1: float,
    eps: float,
    step: int,
    lr: float,
    state2: Tensor | None = None,
    beta2: float = 0.0,
    beta3: float = 0.0,
    alpha: float = 0.0,
    weight_decay: float = 0.0,
    gnorm_scale: float = 1.0,
    unorm_vec: Tensor | None = None,
    max_unorm: float = 0.0,
    skip_zeros: bool = False,
) -> None:
    """One step of an optimizer with fp32 state, in place on p, the states and unorm_vec.

    g, p: fp32, fp16 or bf16. With max_unorm > 0 the norm of p is read on the host.
    """
    param_norm = torch.linalg.vector_norm(p, dtype=torch.float32).item() if max_unorm > 0 else 0.0
    ops.optimizer_update_32bit.default(
        *(optimizer_name, g, p, state1, state2, unorm_vec, max_unorm, param_norm),
        *(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale, skip_zeros),
    )


def optimizer_update_8bit_blockwise(
    optimizer_name: str,
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: Tensor,
    qmap2: Tensor | None,
    absmax1: Tensor,
    absmax2: Tensor | None,
    weight_decay: float = 0.0,
    gnorm_scale: float = 1.0,
    skip_zeros: bool = False,
) -> None:
    """One step of an optimizer with 8-bit state in blocks of 256 (arXiv:2110.02861), in place as the 32-bit one."""
    ops.optimizer_update_8bit_blockwise.default(
        *(optimizer_name, g, p, state1, state2, beta1, beta2, beta3, alpha, eps, step, lr),
        *(qmap1, qmap2, absmax1, absmax2, weight_decay, gnorm_scale, skip_zeros),
    )


def optimizer_update_8bit(
    optimizer_name: str,
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: Tensor,
    qmap2: Tensor | None,
    max1: Tensor,
    max2: Tensor | None,
    new_max1: Tensor | None = None,
    new_max2: Tensor | None = None,
    weight_decay: float = 0.0,
    gnorm_scale: float = 1.0,
    *,
    beta3: float = 0.0,
    alpha: float = 0.0,
    skip_zeros: bool = False,
) -> None:
    """One step of an optimizer with 8-bit state and one fp32 scale per tensor (arXiv:2110.02861), in place.

    max1, max2: the scales, `[1]` (`[2]` for the first of ademamix), changed in place as the states are. new_max1,
    new_max2: buffers that get them too, for callers that swap the two after a step. Clipping by the norm of the update
    (unorm_vec, max_unorm), which older versions took here, is in `optimizer_update_32bit` only.

    Raises ValueError for a buffer of the wrong shape, dtype or device.
    """
    copies = [(new_max1, max1, "new_max1"), (new_max2, max2, "new_max2")]
    pairs = [(new, own, name) for new, own, name in copies if new is not None and own is not None]
    for new, own, name in pairs:
        check_buffer(new, own.shape, own.dtype, own.device, name)
    ops.optimizer_update_8bit.default(
        *(optimizer_name, g, p, state1, state2, beta1, beta2, beta3, alpha, eps, step, lr),
        *(qmap1, qmap2, max1, max2, weight_decay, gnorm_scale, skip_zeros),
    )
    for new, own, _ in pairs:
        new.copy_(own)
