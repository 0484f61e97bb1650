"""What the tests of the optimizers share: parameters, gradients, and training without a model."""

from __future__ import annotations

from typing import Any

import torch

from bnb_core import optim

RULES = ("adagrad", "adam", "adamw", "ademamix", "lamb", "lars", "lion", "rmsprop", "sgd")


def make(rule: str, params: Any, **options: Any) -> optim.KBitOptimizer:
    """The optimizer of a rule; options that are required have a value."""
    if rule.lower() in ("lars", "sgd"):
        options = {"lr": 1e-2, "momentum": 0.9} | options
    return optim.create(rule, params, **options)


def parameters(device: torch.device, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((64, 128), (7,), (3, 1000))
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in shapes]


def set_gradients(params: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p) * 0.1


def train(params: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        set_gradients(params, step)
        optimizer.step()
