"""Where a native kernel runs."""

from __future__ import annotations

import torch
from torch import Tensor


def place(tensor: Tensor) -> tuple[int, int]:
    """The number of a tensor's device, and the address of the current stream there."""
    index = tensor.get_device()
    if index < 0:  # of the CPU: tests run the kernels there
        return 0, 0
    return index, torch._C._cuda_getCurrentRawStream(index)
