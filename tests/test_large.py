"""Kernels on tensors of more than 2^31 elements."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import DEVICE, LEVEL

from bnb_core.conformance.attempts import Subject, large
from bnb_core.conformance.large import LARGE, Large
from bnb_core.ops_registry import OPS, kernels_for


def available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


@pytest.mark.skipif(LEVEL != "full", reason="seconds and gigabytes a case: BNB_CORE_TEST_LEVEL=full")
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.op)
def test_more_than_two_to_the_31_elements(case: Large) -> None:
    """What lies beyond is what the reference makes of it alone."""
    rows = [row for row in kernels_for(case.op, DEVICE.type) if row.is_native and row.unavailable is None]
    if not rows:
        pytest.skip(f"{DEVICE.type} has no kernel of its own for {case.op}")
    needed = int((case.gigabytes + 1.5) * 2**30)
    if DEVICE.type == "cpu" and available_memory() < needed:
        pytest.skip(f"needs {needed >> 20} MB of memory, {available_memory() >> 20} are free")
    for row in rows:
        for attempt in large(Subject(OPS[case.op], DEVICE.type, row)):
            assert not attempt.outcome().sentences, row.name
