"""`pytest --pyargs bnb_core.conformance`: a test for each operator, of all its kernels on one device, and for each
scenario of layers and optimizers.

BNB_CORE_TEST_DEVICE: the device (cpu). BNB_CORE_TEST_LEVEL: `full` for the long lists of sizes.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from bnb_core.ops_registry import OPS

from .run import conform
from .scenarios import SCENARIOS, try_scenario

DEVICE = torch.device(os.environ.get("BNB_CORE_TEST_DEVICE", "cpu")).type
CASES: Any = os.environ.get("BNB_CORE_TEST_LEVEL", "quick")
if CASES not in ("quick", "full"):
    raise pytest.UsageError(f"BNB_CORE_TEST_LEVEL is {CASES!r}, expected 'quick' or 'full'")


@pytest.mark.parametrize("op", OPS)
def test_kernels_conform(op: str) -> None:
    found = [
        f"{trial.kernel}, {failure.aspect}, {failure.case}: {'; '.join(failure.sentences)}\n{failure.program}"
        for trial in conform(DEVICE, [op], CASES)
        for failure in trial.failures
    ]
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS])
def test_layers_and_optimizers_work(name: str) -> None:
    found = try_scenario(DEVICE, name)
    assert not found, "\n".join(found)
