"""Sizes and dtypes of the inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["DTYPES", "MODEL_SHAPES", "SMALL", "Sizes", "counted"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Where the cost of a call rules.
SMALL = (1 << 10, 1 << 12, 1 << 14, 1 << 16)

# (in, out) features of layers in models that people run: a 0.5 B and a 7 B language model, a sentence encoder.
MODEL_SHAPES = ((896, 4864), (4096, 11008), (384, 1536))

_STEP = 64  # what every peer's product takes


@dataclass(frozen=True)
class Sizes:
    """Makes large sizes smaller, to try the benchmark out; the targets are for a scale of 1."""

    scale: float = 1.0

    def elements(self, count: int) -> int:
        return max(1 << 12, int(count * self.scale) // _STEP * _STEP)

    def width(self, features: int) -> int:
        return max(2 * _STEP, int(features * self.scale**0.5) // _STEP * _STEP)


def counted(count: int) -> str:
    """A count in powers of 1024: 16M."""
    value = float(count)
    for unit in ("", "K", "M"):
        if value < 1024:
            return f"{value:g}{unit}"
        value /= 1024
    return f"{value:g}G"
