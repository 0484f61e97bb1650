"""Which kernels ran, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from bnb_core.ops_registry import kernel_counts

Calls = dict[str, dict[str, int]]
"""Op to kernel to the number of calls."""


@contextmanager
def counted() -> Iterator[Calls]:
    """The calls made inside the block, filled in at its end."""
    before, calls = kernel_counts(), Calls()
    yield calls
    for (op, _, kernel), count in sorted((Counter(kernel_counts()) - Counter(before)).items()):
        kernels = calls.setdefault(op, {})
        kernels[kernel] = kernels.get(kernel, 0) + count
