"""The conformance run: it passes what is right, and catches each planted fault."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bnb_core import cli, ops_registry
from bnb_core.conformance import LEVELS, KernelTrial, as_markdown, conform, operators_of, try_case
from bnb_core.ops_registry import OPS, Kernel

pytestmark = pytest.mark.usefixtures("nothing_forced")

right = torch.ops.bnb_core.dequantize_4bit.default


def dequantize(fault: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel of dequantize_4bit with one fault: from what is right, and the arguments, to what it returns."""

    def kernel(
        A: Tensor,
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        shape: list[int],
        dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Any:
        with ops_registry.force("reference"):
            value = right(A, absmax, blocksize, quant_type, shape, dtype)
        return fault(value, A, absmax, blocksize)

    return kernel


def swapped_nibbles(value: Tensor, *rest: Any) -> Tensor:
    flat = value.flatten()
    even = flat.numel() // 2 * 2
    pairs = flat[:even].view(-1, 2).flip(1).reshape(-1)
    return torch.cat([pairs, flat[even:]]).reshape(value.shape).clone()


def wrong_tail(value: Tensor, *rest: Any) -> Tensor:
    if value.numel():
        value.flatten()[-1:].add_(1)
    return value


def scales_one_block_off(value: Tensor, A: Tensor, absmax: Tensor, blocksize: int) -> Tensor:
    each = absmax.reshape(-1).repeat_interleave(blocksize)[: value.numel()]
    other = absmax.reshape(-1).roll(1).repeat_interleave(blocksize)[: value.numel()]
    return (value.flatten().float() / each * other).to(value.dtype).reshape(value.shape).clone()


def mutated_input(value: Tensor, A: Tensor, absmax: Tensor, blocksize: int) -> Tensor:
    absmax.mul_(2)
    return value


def view(value: Tensor, *rest: Any) -> Tensor:
    return value.view(value.shape)


def other_bits_each_time(value: Tensor, *rest: Any) -> Tensor:
    return value + torch.rand_like(value) * 1e-3


def wrong_dtype(value: Tensor, *rest: Any) -> Tensor:
    return value.double()


def raises(value: Tensor, *rest: Any) -> Tensor:
    raise KeyError("no such card")


FAULTS = {
    swapped_nibbles: "result",
    wrong_tail: "result",
    scales_one_block_off: "result",
    mutated_input: "it wrote to absmax, which its schema does not mark as mutated",
    view: "a result is a view",
    other_bits_each_time: "two calls gave other bits",
    wrong_dtype: "torch.float64",
    raises: "it raised KeyError: 'no such card'",
}


@pytest.fixture
def planted() -> Iterator[Callable[..., KernelTrial]]:
    """Registers a kernel of dequantize_4bit, and tries it."""
    rows: list[Kernel] = []

    def plant(fault: Callable[..., Any], **fields: Any) -> KernelTrial:
        row = Kernel(op="dequantize_4bit", device="cpu", name="toy/a", fn=dequantize(fault), priority=99, **fields)
        ops_registry.register_kernels([row])
        rows.append(row)
        return next(conform("cpu", ["dequantize_4bit"]))

    yield plant
    for row in rows:
        ops_registry.unregister_kernel(row)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(fault: Callable[..., Any], planted: Callable[..., KernelTrial]) -> None:
    trial = planted(fault)
    assert (trial.op, trial.kernel, trial.kind) == ("dequantize_4bit", "toy/a", "native")
    assert any(FAULTS[fault] in failure.sentence for failure in trial.failures)


def test_a_right_kernel_passes_every_case(planted: Callable[..., KernelTrial]) -> None:
    trial = planted(lambda value, *rest: value, limits={"blocksize": {64}})
    assert not trial.failures
    cases = len(list(OPS["dequantize_4bit"].each_case("cpu")))
    assert trial.passed > 0 and trial.refused > 0 and trial.passed + trial.refused == cases


def test_a_kernel_that_takes_nothing_fails(planted: Callable[..., KernelTrial]) -> None:
    trial = planted(lambda value, *rest: value, why_not=lambda *args: "not today")
    assert [failure.sentence for failure in trial.failures] == ["it refuses every case of its operator"]


def test_a_refusal_that_raises_is_a_failure(planted: Callable[..., KernelTrial]) -> None:
    def broken(*args: Any) -> str:
        raise KeyError("no such table")

    trial = planted(lambda value, *rest: value, why_not=broken)
    assert trial.failures and all("it raised KeyError: 'no such table'" in f.sentence for f in trial.failures)


def test_the_program_of_a_failure_shows_it_again(
    planted: Callable[..., KernelTrial], capsys: pytest.CaptureFixture[str]
) -> None:
    failure = planted(wrong_tail).failures[0]
    assert len(failure.program.splitlines()) == 3
    exec(failure.program, {})
    assert failure.sentence in capsys.readouterr().out


def test_a_case_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="dequantize_4bit has no kernel 'cpu/abacus' on cpu"):
        try_case("dequantize_4bit", "cpu", "cpu/abacus", "x")
    with pytest.raises(ValueError, match="dequantize_4bit has no case 'x'"):
        try_case("dequantize_4bit", "cpu", "reference", "x")


def test_what_a_device_does_not_have_is_named() -> None:
    assert [(t.kernel, t.kind) for t in conform("npu", ["int8_mm"])] == [("reference", "reference")]


def test_levels() -> None:
    assert set(LEVELS) == {"inference", "qlora", "optimizers", "full"}
    assert all(set(ops) <= set(OPS) for ops in LEVELS.values())
    assert set(operators_of("full")) == set(OPS)
    with pytest.raises(ValueError, match="there is no level 'some'; there are inference, qlora"):
        operators_of("some")


def test_the_command_and_its_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "found.json"
    assert cli.main(["conformance", "--op", "int8_vectorwise_dequant", "--report", str(written)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(written.read_text())
    rows = [k for k in ops_registry.kernels_for("int8_vectorwise_dequant", "cpu") if k.unavailable is None]
    own = [kernel.name for kernel in rows if not kernel.is_reference]
    assert [trial["kernel"] for trial in found["trials"]] == (own or ["reference"])
    assert f"{len(own)} kernels conform" in printed


def test_a_whole_level_ends_with_layers_and_a_training_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LEVELS, "inference", ("int8_vectorwise_dequant",))
    assert cli.main(["conformance", "--level", "inference"]) == 0
    assert "kernels conform; end to end (32-bit Adam, 8-bit Adam, Linear4bit" in capsys.readouterr().out


def test_the_command_says_what_failed(planted: Callable[..., KernelTrial], capsys: pytest.CaptureFixture[str]) -> None:
    trial = planted(wrong_tail)
    assert cli.main(["conformance", "--op", "dequantize_4bit"]) == 1
    printed = capsys.readouterr().out
    assert "toy/a            failed" in printed and "kernels FAILED" in printed and "try_case(" in printed
    page = as_markdown("cpu", [trial])
    assert "| `dequantize_4bit` | `toy/a` | native | " in page and "```python\nimport bnb_core" in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "abacus"], "there is no device abacus here; there is cpu"),
        (["--op", "gemm"], "there is no operator gemm; there are "),
        (["--report", "found.pdf"], "found.pdf is neither of .json, .md"),
        (["--report", "no/such/found.md"], "no/such/found.md: there is no folder"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["conformance", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_it_is_a_suite_for_pytest_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "bnb_core.conformance"]
    done = subprocess.run(
        [*command, "-k", "int8_mm_dequant"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "1 passed" in done.stdout or "1 skipped" in done.stdout, done.stdout + done.stderr
