"""The kernels in Triton: interpreted on the CPU against the reference, and compiled for GPUs that are not here."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch
from conftest import LEVEL
from installed import python

from bnb_core.backends import triton as library
from bnb_core.backends.triton import tiles
from bnb_core.ops_registry import OPS, backends

pytestmark = [
    pytest.mark.usefixtures("nothing_forced"),
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
]


def release(number: str) -> tuple[int, ...]:
    return tuple(map(int, number.split(".")[:2]))


# Interpreters before take an array of one element for a number, which NumPy no longer does.
interpreted = pytest.mark.skipif(
    find_spec("triton") is not None and release(version("triton")) < (3, 7) and release(numpy.__version__) >= (2, 4),
    reason="the interpreter of Triton before 3.7 needs NumPy below 2.4",
)


def passes(program: str, **environment: str) -> str:
    done = python("-c", program, path=(), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@interpreted
@pytest.mark.parametrize("family", library.OPS)
def test_interpreted_kernels_conform(family: str) -> None:
    """A part of what the conformance run tries: a program takes milliseconds to interpret."""
    passes(
        f"""
from itertools import islice
from bnb_core import ops_registry
from bnb_core.backends import triton
from bnb_core.conformance.attempts import ASPECTS, Subject
for op in triton.OPS[{family!r}]:
    row = ops_registry.kernel_named("cpu/triton", op, "cpu")
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


@pytest.mark.parametrize("level", [75, 80, 120])
def test_products_of_int8_are_refused_before_ampere(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnb_core.backends.triton import int8

    A, (row,) = torch.zeros(1, 1, dtype=torch.int8), (row for row in library.rows("cpu") if row.op == "int8_mm")
    assert row.refuses((A, A, None)) is None
    monkeypatch.setattr(int8, "architecture", lambda device: f"sm_{level}")
    reason = "products of int8 need sm_80 or later, got sm_75" if level < 80 else None
    assert int8.why_not_int8_mm(A) == reason


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_devices_take_their_rows_and_are_unavailable_without_hardware(device: str) -> None:
    (record,) = (record for record in backends() if record.name == device)
    if torch.get_device_module(device).is_available():
        assert record.status == "loaded" and f"{device}/triton" in {row.name for row in record.kernels}
    else:
        assert (record.status, record.kernels) == ("unavailable", ()) and "torch finds no" in record.reason


@interpreted
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


@interpreted
def test_many_rows_are_left_to_torch() -> None:
    """By the last rung of the table."""
    passes(
        """
import torch
from torch._C import DispatchKey
from bnb_core import ops_registry
from bnb_core.backends import cuda
from bnb_core.backends.triton import fourbit, tiles
ops_registry.register_kernels(cuda.KERNELS)
last = tiles.read(tiles.OWN)["any"]["fourbit.gemm"][-1]["rows"]
packed, absmax = torch.ops.bnb_core.quantize_4bit(torch.randn(8, 64), 64, "nf4", torch.uint8)
for rows, kernel in ((last, "cuda/triton"), (last + 1, "composed")):
    ops_registry.reset_kernel_counts()
    args = torch.randn(rows, 64), packed, (8, 64), absmax, 64, "nf4"
    torch.ops.bnb_core.gemm_4bit.default._op_dk(DispatchKey.CUDA, *args)
    ran = {ran for op, _, ran in ops_registry.kernel_counts() if op == "gemm_4bit"}
    assert ran == {kernel}, ran
assert fourbit.why_not_gemm_4bit(torch.randn(last + 1, 64)) == f"needs fewer rows than A has, {last + 1}"
""",
        TRITON_INTERPRET="1",
    )


@interpreted
def test_tuning_writes_the_table_that_launches_read(tmp_path: Path) -> None:
    """On the CPU, whose interpreted kernels it times like any others."""
    table = tmp_path / "tiles.json"
    tune = ("-m", "bnb_core.backends.triton.tune", "--device", "cpu", "--size", "64", "--rounds", "1")
    done = python(*tune, "--output", table, "statistics.squares", "int8.scale", path=(), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "statistics.squares: " in done.stdout and f"{table}: 2 kernels of any" in done.stdout
    found = tiles.read(table)["any"]
    assert set(found) == {"statistics.squares", "int8.scale"} and [len(rungs) for rungs in found.values()] == [1, 1]
    for kernel, (rung,) in found.items():
        assert rung.keys() == tiles.tile(kernel, torch.device("cpu")).keys()
    done = python(*tune, "--rounds", "0", path=(), TRITON_INTERPRET="1")
    assert done.returncode == 2 and "--size and --rounds are at least 1" in done.stderr
    table.write_text("{")
    done = python(*tune, "--output", table, path=(), TRITON_INTERPRET="1")
    assert done.returncode == 2 and f"{table} is no table of tiles" in done.stderr
    done = python(*tune, "fourbit.gem", path=(), TRITON_INTERPRET="1")
    assert done.returncode == 2 and "no kernel fourbit.gem, expected some of blockwise.quantize, " in done.stderr


def test_a_table_of_the_user_comes_first(tmp_path: Path) -> None:
    table = tmp_path / "tiles.json"
    table.write_text('{"any": {"int8.scale": [{"ROWS": 3}]}, "sm_90": {"fourbit.embed": [{"SIZE": 5}]}}')
    passes(
        """
import torch
from bnb_core.backends.triton import tiles
cpu = torch.device("cpu")
assert tiles.tile("int8.scale", cpu) == {"ROWS": 3}
assert tiles.tile("fourbit.embed", cpu) == tiles.read(tiles.OWN)["any"]["fourbit.embed"][0]
""",
        BNB_CORE_TRITON_TILES=str(table),
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "no table of tiles: "),
        ('{"any": {"int8.scale": [{"ROWS": 0}]}}', "expected rungs of numbers"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_table_is_said(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "tiles.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        tiles.read(path)


def test_rungs_rise_and_all_tables_name_the_same_kernels() -> None:
    table = tiles.read(tiles.OWN)
    for architecture, kernels in table.items():
        assert set(kernels) <= set(table["any"]), architecture
        for kernel, rungs in kernels.items():
            rows = [rung.get("rows", float("inf")) for rung in rungs]
            assert rows == sorted(set(rows)), (architecture, kernel)
            assert kernel == "fourbit.gemm" or rows[-1] == float("inf"), (architecture, kernel)
            sizes = [value for rung in rungs for name, value in rung.items() if name not in ("rows", "num_stages")]
            assert all(size & (size - 1) == 0 for size in sizes), (architecture, kernel)


def test_kernels_compile_for_gpus_that_are_not_here() -> None:
    """To the registers, shared memory and spills on record, where this Triton made it."""
    targets = ("sm_80", "sm_90", "sm_100", "gfx90a", "gfx942")
    done = python(Path(__file__).parents[1] / "ci" / "triton_resources.py", "--check", *targets, path=())
    assert done.returncode == 0, done.stdout + done.stderr
