"""Optimizer steps as a native module takes them: lists of addresses, one call for each dtype."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .formats import ParameterLists
from .memory import address, contiguous

__all__ = ["Now", "OptimizerSteps"]

# The step and the learning rate: 0-dim fp32 on the device of the parameters, or numbers.
Now = tuple[Tensor, Tensor] | tuple[int, float]


class Addresses:
    """Lists of tensors as lists of addresses; a strided one stands in by a contiguous copy until `done`."""

    def __init__(self) -> None:
        self._copies: list[Tensor] = []
        self._written: list[tuple[Tensor, Tensor]] = []

    def read(self, tensors: Sequence[Tensor]) -> list[int]:
        """The addresses of tensors that are only read."""
        if all(map(Tensor.is_contiguous, tensors)):
            return list(map(Tensor.data_ptr, tensors))
        self._copies += (dense := [t.contiguous() for t in tensors])
        return [t.data_ptr() for t in dense]

    def written(self, tensors: Sequence[Tensor] | None) -> list[int] | None:
        """The addresses of tensors that are read and written; None for None."""
        if tensors is None:
            return None
        if all(map(Tensor.is_contiguous, tensors)):
            return list(map(Tensor.data_ptr, tensors))
        dense = [t.contiguous() for t in tensors]
        self._written += [(t, copy) for t, copy in zip(tensors, dense, strict=True) if t is not copy]
        return [t.data_ptr() for t in dense]

    def done(self) -> None:
        """Copies back what was written."""
        for tensor, copy in self._written:
            tensor.copy_(copy)


class OptimizerSteps:
    """The operators of all state formats, on the functions `optimizer_step_*` of a native module.

    A backend says in `call` how these want to be called.
    """

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def call(
        self,
        op: str,
        rule: str,
        lists: ParameterLists,
        fields: tuple[list[int] | None, ...],
        now: Now,
        settings: tuple[Any, ...],
        rest: tuple[Any, ...],
    ) -> None:
        """One step of parameters of one dtype.

        fields: how many elements each has, then the addresses of each of the `lists`. rest: of fp32 state `max_unorm`
        and the norm of each parameter, below 0 where it is still to be taken; of 8-bit state the address and the size
        of both codebooks.
        """
        raise NotImplementedError

    def run(self, op: str, rule: str, lists: ParameterLists, now: Now, settings: tuple[Any, ...], *rest: Any) -> None:
        """Calls once for each dtype of the parameters."""
        dtypes = {p.dtype for p in lists.params}
        for dtype in dtypes:
            part = lists if len(dtypes) == 1 else of_dtype(dtype, lists)
            addresses = Addresses()
            fields = (
                list(map(Tensor.numel, part.params)),
                addresses.read(part.grads),
                *map(addresses.written, part[1:]),
            )
            self.call(op, rule, part, fields, now, settings, rest)
            addresses.done()

    def run_coded(
        self,
        op: str,
        rule: str,
        lists: ParameterLists,
        now: Now,
        settings: tuple[Any, ...],
        qmap1: Tensor,
        qmap2: Tensor | None,
    ) -> None:
        """`run` with the codebooks of the states, 0 for none."""
        first, second = qmap1.contiguous(), contiguous(qmap2)
        sizes = first.numel(), 0 if second is None else second.numel()
        self.run(op, rule, lists, now, settings, first.data_ptr(), sizes[0], address(second), sizes[1])

    def optimizer_step_32bit(
        self,
        optimizer_name: str,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        state1: Sequence[Tensor],
        state2: Sequence[Tensor] | None,
        unorm_vec: Sequence[Tensor] | None,
        step: Tensor,
        lr: Tensor,
        max_unorm: float,
        beta1: float,
        beta2: float,
        beta3: float,
        alpha: float,
        eps: float,
        weight_decay: float,
        gnorm_scale: float,
        skip_zeros: bool = False,
    ) -> None:
        """One step of all parameters with fp32 state."""
        settings = (beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
        lists = ParameterLists(grads, params, state1, state2, unorm_vec=unorm_vec)
        take_norm = -1.0
        self.run("optimizer_step_32bit", optimizer_name, lists, (step, lr), settings, max_unorm, take_norm)

    def optimizer_update_32bit(
        self,
        optimizer_name: str,
        g: Tensor,
        p: Tensor,
        state1: Tensor,
        state2: Tensor | None,
        unorm_vec: Tensor | None,
        max_unorm: float,
        param_norm: float,
        beta1: float,
        beta2: float,
        beta3: float,
        alpha: float,
        eps: float,
        weight_decay: float,
        step: int,
        lr: float,
        gnorm_scale: float,
        skip_zeros: bool = False,
    ) -> None:
        """One step of one parameter with fp32 state."""
        settings = (beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
        lists = ParameterLists([g], [p], [state1], one(state2), unorm_vec=one(unorm_vec))
        self.run("optimizer_step_32bit", optimizer_name, lists, (step, lr), settings, max_unorm, param_norm)

    def optimizer_step_8bit_blockwise(
        self,
        optimizer_name: str,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        state1: Sequence[Tensor],
        state2: Sequence[Tensor] | None,
        qmap1: Tensor,
        qmap2: Tensor | None,
        absmax1: Sequence[Tensor],
        absmax2: Sequence[Tensor] | None,
        step: Tensor,
        lr: Tensor,
        beta1: float,
        beta2: float,
        beta3: float,
        alpha: float,
        eps: float,
        weight_decay: float,
        gnorm_scale: float,
        skip_zeros: bool = False,
    ) -> None:
        """One step of all parameters with 8-bit state, one scale per block of 256."""
        settings = (beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
        lists = ParameterLists(grads, params, state1, state2, absmax1, absmax2)
        self.run_coded("optimizer_step_8bit_blockwise", optimizer_name, lists, (step, lr), settings, qmap1, qmap2)

    def optimizer_update_8bit_blockwise(
        self,
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
        weight_decay: float,
        gnorm_scale: float,
        skip_zeros: bool = False,
    ) -> None:
        """One step of one parameter with 8-bit state, one scale per block of 256."""
        settings = (beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
        lists = ParameterLists([g], [p], [state1], one(state2), [absmax1], one(absmax2))
        self.run_coded("optimizer_step_8bit_blockwise", optimizer_name, lists, (step, lr), settings, qmap1, qmap2)

    def optimizer_step_8bit(
        self,
        optimizer_name: str,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        state1: Sequence[Tensor],
        state2: Sequence[Tensor] | None,
        qmap1: Tensor,
        qmap2: Tensor | None,
        max1: Sequence[Tensor],
        max2: Sequence[Tensor] | None,
        step: Tensor,
        lr: Tensor,
        beta1: float,
        beta2: float,
        beta3: float,
        alpha: float,
        eps: float,
        weight_decay: float,
        gnorm_scale: float,
        skip_zeros: bool = False,
    ) -> None:
        """One step of all parameters with 8-bit state, one scale per tensor."""
        settings = (beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
        lists = ParameterLists(grads, params, state1, state2, max1, max2)
        self.run_coded("optimizer_step_8bit", optimizer_name, lists, (step, lr), settings, qmap1, qmap2)

    def optimizer_update_8bit(
        self,
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
        max1: Tensor,
        max2: Tensor | None,
        weight_decay: float,
        gnorm_scale: float,
        skip_zeros: bool = False,
    ) -> None:
        """One step of one parameter with 8-bit state, one scale per tensor."""
        settings = (beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
        lists = ParameterLists([g], [p], [state1], one(state2), [max1], one(max2))
        self.run_coded("optimizer_step_8bit", optimizer_name, lists, (step, lr), settings, qmap1, qmap2)


def of_dtype(dtype: torch.dtype, lists: ParameterLists) -> ParameterLists:
    """The parameters of one dtype."""
    chosen = [p.dtype == dtype for p in lists.params]
    return ParameterLists._make(tensors and list(compress(tensors, chosen)) for tensors in lists)


def one(tensor: Tensor | None) -> list[Tensor] | None:
    """A list of the tensor, if there is one."""
    return None if tensor is None else [tensor]
