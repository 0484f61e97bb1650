"""The kernels in Triton: interpreted on the CPU against the reference, and compiled for GPUs that are not here."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from installed import python

from bnb_core.backends import triton as library
from bnb_core.ops_registry import OPS, Kernel

pytestmark = [
    pytest.mark.usefixtures("nothing_forced"),
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
]

ROWS = library.rows("cpu")


def passes(program: str, **environment: str) -> str:
    done = python("-c", program, path=(), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.op)
def test_interpreted_kernels_conform(row: Kernel) -> None:
    passes(
        f"""
from bnb_core import ops_registry
from bnb_core.backends import triton
from bnb_core.conformance import conform
ops_registry.register_kernels([row for row in triton.rows("cpu") if row.op == {row.op!r}])
(trial,) = conform("cpu", [{row.op!r}], kernels=["cpu/triton"])
assert not trial.failures, trial.failures[:3]
assert trial.aspects["agreement"].passed > 2 * trial.aspects["agreement"].refused
""",
        TRITON_INTERPRET="1",
    )


def test_rows_are_of_operators_and_named_after_the_device() -> None:
    rows = library.rows("xpu")
    assert {row.name for row in rows} == {"xpu/triton"} and {row.device for row in rows} == {"xpu"}
    assert len({row.op for row in rows}) == len(rows) and all(row.op in OPS for row in rows)
    assert library.KERNELS == ()
