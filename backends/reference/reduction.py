"""Sums whose bits do not depend on the number of threads."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Fewer elements than any device or thread pool splits one sum over.
RUN = 4096


def sum_in_order(x: torch.Tensor) -> torch.Tensor:
    """The sum of all elements, 0-dim: of runs of fixed length, then of their sums."""
    x = x.reshape(-1)
    while x.numel() > RUN:
        x = F.pad(x, (0, -x.numel() % RUN)).view(-1, RUN).sum(dim=1)
    return x.sum()


def norm(x: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of all elements, 0-dim fp32."""
    return sum_in_order(x.float().square()).sqrt()
