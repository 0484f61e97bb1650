"""Optimizer steps on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnb_core.ops_registry.formats import ParameterLists
from bnb_core.ops_registry.memory import NAMES
from bnb_core.ops_registry.optimizer_steps import Now, OptimizerSteps

from .levels import at_each_level


class Optimizer(OptimizerSteps):
    """The kernels of one level."""

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
        """On as many threads as torch takes."""
        step, lr = on_host(*now)
        name = NAMES[lists.params[0].dtype]
        function = getattr(self._native, op)
        function(rule, name, fields, step.data_ptr(), lr.data_ptr(), settings, *rest, torch.get_num_threads())


def on_host(step: Tensor | int, lr: Tensor | float) -> tuple[Tensor, Tensor]:
    """Step and learning rate as the native steps read them."""
    if isinstance(step, Tensor) and isinstance(lr, Tensor):
        return step, lr
    numbers = torch.tensor((step, lr), dtype=torch.float32, device="cpu")
    return numbers[0], numbers[1]


kernels = at_each_level(Optimizer)
