"""The kernel table and its choices, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .choosing import devices, forced_kernel, plan_of
from .kernels import ANY_DEVICE, Kernel, kernels_for, show
from .op import NAMESPACE, OPS, Op
from .settings import settings

__all__ = ["chosen_kernel", "explain"]


def chosen_kernel(op: str, *args: Any) -> Kernel:
    """The kernel that a call of an operator runs; it is not called.

    Raises what the call would: of the operator's check, RuntimeError for a forced kernel that refuses, FallbackError.
    """
    args = OPS[op].complete(args)
    OPS[op].check(*args)
    device = args[OPS[op].device_position].device.type
    return plan_of(OPS[op], device).chosen(args)


def explain(op: str, *args: Any, device: str | None = None) -> None:
    """Prints the kernels that can serve an operator, which one runs, and why each other does not.

    op: name of the operator.
    args: the arguments of a call; the check runs on them, no kernel does. Without arguments the declared limits are
        printed, for every device that has kernels or for `device`.

    Raises ValueError for an unknown operator or a wrong number of arguments, and what the operator's check raises for
    bad arguments.
    """
    if op not in OPS:
        raise ValueError(f"there is no operator {op!r}; there are {', '.join(OPS)}")
    if args and not OPS[op].required <= len(args) <= len(OPS[op].parameters):
        raise ValueError(f"{op} was given {len(args)} arguments, expected those of {OPS[op].schema}")
    print("\n".join(_explain_call(OPS[op], args) if args else _explain_table(OPS[op], device)))  # noqa: T201


def _explain_table(op: Op, device: str | None) -> Iterator[str]:
    yield f"{NAMESPACE}::{op.schema}"
    own = [device] if device else [d for d in devices() if not kernels_for(op.name, d)[0].is_reference]
    rest = [] if device else [(ANY_DEVICE, "on any other device" if own else "on every device")]
    for place, title in [(d, f"on {d}, best first") for d in own] + rest:
        yield title
        for kernel in kernels_for(op.name, place):
            limits = "; ".join(f"{key}: {', '.join(map(show, allowed))}" for key, allowed in kernel.limits.items())
            yield f"  {kernel.name:<16} {kernel.unavailable or limits or 'no limits'}  ({kernel.origin})"


def _explain_call(op: Op, args: tuple[Any, ...]) -> Iterator[str]:
    args = op.complete(args)
    op.check(*args)
    device = args[op.device_position].device.type
    shown = (f"{name} {_describe(value)}" for name, value in zip(op.parameters, args, strict=True) if value is not None)
    yield f"{NAMESPACE}::{op.name} on {device}: {', '.join(shown)}"
    forced = forced_kernel(op.name, device)
    chosen: Kernel | None = None
    for kernel in kernels_for(op.name, device):
        reason = kernel.refuses(args)
        if forced is not None and kernel is not forced:
            reason = f"{forced.name} is forced"
        elif reason is None and chosen is not None:
            reason = f"{chosen.name} comes first"
        if reason is None:
            chosen = kernel
        falls_back = kernel.is_reference and device != "cpu" and kernel is not forced
        runs = "raises: the fallback policy is 'error'" if falls_back and settings.policy == "error" else "runs"
        yield f"  {'->' if reason is None else '  '} {kernel.name:<16} {reason or runs}"


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{show(value.dtype)}{list(value.shape)}"
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        return f"{len(value)} x {_describe(value[0])}"
    return show(value)
