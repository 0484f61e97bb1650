"""The rows of the groups of `grouped_gemm_4bit`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

__all__ = ["group_rows"]


def group_rows(ends: Tensor, rows: int) -> Iterator[tuple[int, slice]]:
    """Each group that has rows, and which; of groups that end at `ends`, read from the device.

    Raises IndexError for ends that are not ascending, or beyond `rows`.
    """
    bounds = [0, *ends.tolist()]
    if bounds != sorted(bounds) or bounds[-1] > rows:
        raise IndexError(
            f"bnb_core::grouped_gemm_4bit: ends is {bounds[1:]}, expected ascending ones up to {rows}, the rows of A"
        )
    for group, (first, last) in enumerate(pairwise(bounds)):
        if first < last:
            yield group, slice(first, last)
