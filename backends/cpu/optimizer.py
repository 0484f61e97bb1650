"""Optimizer steps on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bnb_core.ops_registry.formats import ParameterLists
from bnb_core.ops_registry.memory import NAMES

from .levels import at_each_level


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


class Optimizer:
    """The kernels of one level."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native

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
        run(self._native.optimizer_step_32bit, optimizer_name, lists, (step, lr), settings, max_unorm, take_norm)

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
        now = on_host(step, lr)
        run(self._native.optimizer_step_32bit, optimizer_name, lists, now, settings, max_unorm, param_norm)

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
        run_coded(self._native.optimizer_step_8bit_blockwise, optimizer_name, lists, (step, lr), settings, qmap1, qmap2)

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
        run_coded(
            self._native.optimizer_step_8bit_blockwise, optimizer_name, lists, on_host(step, lr), settings, qmap1, qmap2
        )

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
        run_coded(self._native.optimizer_step_8bit, optimizer_name, lists, (step, lr), settings, qmap1, qmap2)

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
        now = on_host(step, lr)
        run_coded(self._native.optimizer_step_8bit, optimizer_name, lists, now, settings, qmap1, qmap2)


# The step and the learning rate, 0-dim fp32.
Now = tuple[Tensor, Tensor]


def run(
    function: Callable[..., None],
    rule: str,
    lists: ParameterLists,
    now: Now,
    settings: tuple[Any, ...],
    *rest: Any,
) -> None:
    """Calls a native step once for each dtype of the parameters."""
    step, lr = now
    dtypes = {p.dtype for p in lists.params}
    for dtype in dtypes:
        part = lists if len(dtypes) == 1 else of_dtype(dtype, lists)
        addresses = Addresses()
        fields = (
            list(map(Tensor.numel, part.params)),
            addresses.read(part.grads),
            *map(addresses.written, part[1:]),
        )
        threads = torch.get_num_threads()
        function(rule, NAMES[dtype], fields, step.data_ptr(), lr.data_ptr(), settings, *rest, threads)
        addresses.done()


def run_coded(
    function: Callable[..., None],
    rule: str,
    lists: ParameterLists,
    now: Now,
    settings: tuple[Any, ...],
    qmap1: Tensor,
    qmap2: Tensor | None,
) -> None:
    """`run` with the codebooks of the states."""
    first = qmap1.contiguous()
    second = None if qmap2 is None else qmap2.contiguous()
    maps = first.data_ptr(), first.numel(), *((0, 0) if second is None else (second.data_ptr(), second.numel()))
    run(function, rule, lists, now, settings, *maps)


def on_host(step: int, lr: float) -> Now:
    """Numbers as the native steps read them."""
    numbers = torch.tensor((step, lr), dtype=torch.float32, device="cpu")
    return numbers[0], numbers[1]


def of_dtype(dtype: torch.dtype, lists: ParameterLists) -> ParameterLists:
    """The parameters of one dtype."""
    chosen = [p.dtype == dtype for p in lists.params]
    return ParameterLists._make(tensors and list(compress(tensors, chosen)) for tensors in lists)


def one(tensor: Tensor | None) -> list[Tensor] | None:
    """A list of the tensor, if there is one."""
    return None if tensor is None else [tensor]


kernels = at_each_level(Optimizer)
