"""Optimizer steps on NVIDIA GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.formats import ParameterLists
from bnb_core.ops_registry.memory import NAMES, address, new_tensor
from bnb_core.ops_registry.optimizer_steps import Now, OptimizerSteps

from .streams import place


class Optimizer(OptimizerSteps):
    """The kernels of a native module."""

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
        """On the current stream; step and learning rate are read on the device where they stand there."""
        step, lr = now
        if isinstance(step, Tensor) and isinstance(lr, Tensor):
            moment = (step.data_ptr(), lr.data_ptr(), 0.0, 0.0)
        else:
            moment = (0, 0, float(step), float(lr))
        p = lists.params[0]
        if op == "optimizer_step_32bit":
            scratch = self._sums(lists) if rest[0] > 0 else None
            rest = (*rest, address(scratch))
        elif op == "optimizer_step_8bit":
            scratch = p.new_zeros(self._native.SCRATCH_8BIT * len(lists.params), dtype=torch.int32)
            rest = (*rest, address(scratch))
        getattr(self._native, op)(*place(p), rule, NAMES[p.dtype], fields, *moment, settings, *rest)

    def _sums(self, lists: ParameterLists) -> Tensor:
        """Memory for the sums of squares of all parameters, and for what comes of them."""
        parts = sum(ceil_div(p.numel(), self._native.SUMMED) for p in lists.params)
        return new_tensor(lists.params[0], 2 * parts + len(lists.params), dtype=torch.float32)
