"""What every test shares: the device under test and how thorough to be.

BNB_CORE_TEST_DEVICE: the device (default cpu; of an accelerator without an index the first). BNB_CORE_TEST_LEVEL:
`quick` (default) or `full`, all cases of everything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from ranks import on_ranks  # noqa: F401  a fixture

import bnb_core
from bnb_core import ops_registry

DEVICE = torch.device(os.environ.get("BNB_CORE_TEST_DEVICE", "cpu"))
if DEVICE.type != "cpu" and DEVICE.index is None:  # as tensors name it, with which tests compare
    DEVICE = torch.device(DEVICE.type, 0)
if DEVICE.type == "cuda":
    from lost_device import pytest_runtest_protocol  # noqa: F401  a hook
LEVEL = os.environ.get("BNB_CORE_TEST_LEVEL", "quick")
if LEVEL not in ("quick", "full"):
    raise ValueError(f"BNB_CORE_TEST_LEVEL is {LEVEL!r}, expected quick or full")


@pytest.fixture
def device() -> torch.device:
    """The device that the suite runs on."""
    return DEVICE


@pytest.fixture(autouse=True)
def kernel_table_unchanged() -> Iterator[None]:
    """No test leaves rows behind in the kernel table."""
    before = ops_registry.kernels.rows()
    yield
    assert ops_registry.kernels.rows() == before


@pytest.fixture
def nothing_forced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test chooses its kernels itself, here and in processes that it starts, whatever BNB_CORE_FORCE is."""
    monkeypatch.delenv("BNB_CORE_FORCE", raising=False)
    with ops_registry.force():
        yield


def pytest_report_header() -> list[str]:
    rows = [f"{record.name} {record.status}" for record in ops_registry.backends()]
    return [f"bnb_core {bnb_core.__version__} on {DEVICE}, level {LEVEL}; backends: {', '.join(rows)}"]
