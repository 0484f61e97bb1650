"""What the demo does, and how much of it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """A way to store the linear layers: `to` and `double` are what `bnb-core quantize` takes."""

    key: str
    title: str
    to: str
    double: bool = False


VARIANTS = (
    Variant("int8", "int8", "int8"),
    Variant("nf4", "NF4", "nf4"),
    Variant("nf4-double", "NF4 double", "nf4", double=True),
    Variant("fp4", "FP4", "fp4"),
)


@dataclass(frozen=True)
class Plan:
    """Amounts of work. Of each `window` tokens the last `stride` are scored, the others are only read before them."""

    variants: tuple[Variant, ...]
    scored_tokens: int
    window: int
    stride: int
    batch: int
    new_tokens: int
    epochs: int

    def __post_init__(self) -> None:
        if not 0 < self.stride < self.window or self.scored_tokens % self.stride:
            tokens, stride, window = self.scored_tokens, self.stride, self.window
            raise ValueError(f"{tokens} tokens do not divide into strides of {stride} of {window}")

    @property
    def context(self) -> int:
        return self.window - self.stride


FULL = Plan(VARIANTS, scored_tokens=4096, window=512, stride=256, batch=4, new_tokens=32, epochs=30)
QUICK = Plan(VARIANTS, scored_tokens=512, window=256, stride=128, batch=4, new_tokens=8, epochs=10)


def plan_of(args: argparse.Namespace) -> Plan:
    return QUICK if args.quick else FULL
