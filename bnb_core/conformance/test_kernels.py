"""`pytest --pyargs bnb_core.conformance`: a test for each operator, of all its kernels on one device.

BNB_CORE_TEST_DEVICE: the device (cpu). BNB_CORE_TEST_LEVEL: `full` for the long lists of sizes.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from bnb_core.ops_registry import OPS

from .trial import conform

DEVICE = os.environ.get("BNB_CORE_TEST_DEVICE", "cpu")
CASES: Any = os.environ.get("BNB_CORE_TEST_LEVEL", "quick")


@pytest.mark.parametrize("op", OPS)
def test_kernels_conform(op: str) -> None:
    trials = list(conform(DEVICE, [op], CASES))
    if all(trial.kind == "reference" for trial in trials):
        pytest.skip(f"{DEVICE} has no kernel of its own for {op}, and none is composed")
    failures = [
        f"{trial.kernel}, {failure.case}: {failure.sentence}\n{failure.program}"
        for trial in trials
        for failure in trial.failures
    ]
    assert not failures, "\n\n".join(failures)
