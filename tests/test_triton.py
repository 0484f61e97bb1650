"""The kernels in Triton: interpreted on the CPU against the reference, and compiled for GPUs that are not here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import LEVEL
from installed import python

from bnb_core.backends import triton as library
from bnb_core.ops_registry import OPS, backends

pytestmark = [
    pytest.mark.usefixtures("nothing_forced"),
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
]


def passes(program: str, **environment: str) -> str:
    done = python("-c", program, path=(), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("family", library.OPS)
def test_interpreted_kernels_conform(family: str) -> None:
    """A part of what the conformance run tries: a program takes milliseconds to interpret."""
    passes(
        f"""
from itertools import islice
from bnb_core import ops_registry
from bnb_core.backends import triton
from bnb_core.conformance.attempts import ASPECTS, Subject
rows = [row for row in triton.rows("cpu") if row.op in triton.OPS[{family!r}]]
ops_registry.register_kernels(rows)
for op in triton.OPS[{family!r}]:
    row = next(row for row in ops_registry.kernels_for(op, "cpu") if row.name == "cpu/triton")
    subject, passed = Subject(ops_registry.OPS[op], "cpu", row), 0
    for aspect in ASPECTS.keys() - {{"bad input"}}:
        for attempt in islice(ASPECTS[aspect](subject), 0, None, {1 if LEVEL == "full" else 5}):
            outcome = attempt.outcome()
            assert not outcome.sentences, (op, aspect, attempt.case, outcome.sentences)
            passed += not outcome.refused
    assert passed > 3, (op, passed)
""",
        TRITON_INTERPRET="1",
    )


def test_rows_are_of_operators_and_named_after_the_device() -> None:
    rows = library.rows("xpu")
    assert {row.name for row in rows} == {"xpu/triton"} and {row.device for row in rows} == {"xpu"}
    assert len({row.op for row in rows}) == len(rows) and all(row.op in OPS for row in rows)
    assert library.KERNELS == ()


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_devices_take_their_rows_and_are_unavailable_without_hardware(device: str) -> None:
    (record,) = (record for record in backends() if record.name == device)
    if torch.get_device_module(device).is_available():
        assert record.status == "loaded" and {row.name for row in record.kernels} == {f"{device}/triton"}
    else:
        assert (record.status, record.kernels) == ("unavailable", ()) and "torch finds no" in record.reason


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_the_kernels_of_a_device_run_on_the_memory_of_the_host(device: str) -> None:
    """What is registered for its dispatch key, called with tensors of the CPU."""
    passes(
        f"""
import torch
from torch._C import DispatchKey
from bnb_core import ops_registry
from bnb_core.backends import {device} as backend
ops_registry.register_kernels(backend.KERNELS)
x = torch.randn(9, 65)
key, ops = DispatchKey.{device.upper()}, torch.ops.bnb_core
want = ops.quantize_4bit(x, 64, "nf4", torch.uint8)
got = ops.quantize_4bit.default._op_dk(key, x, 64, "nf4", torch.uint8)
assert all(map(torch.equal, got, want))
weight = (*want, 64, "nf4", (9, 65), torch.bfloat16)
assert torch.equal(ops.dequantize_4bit.default._op_dk(key, *weight), ops.dequantize_4bit(*weight))
ran = {{kernel for op, where, kernel in ops_registry.kernel_counts() if where == {device!r}}}
assert ran == {{"{device}/triton"}}, ran
""",
        TRITON_INTERPRET="1",
    )


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_kernels_compile_for_gpus_that_are_not_here(target: str) -> None:
    """To the registers, shared memory and spills on record, where this Triton made it."""
    done = python(Path(__file__).parents[1] / "ci" / "triton_resources.py", "--check", target, path=())
    assert done.returncode == 0, done.stdout + done.stderr
