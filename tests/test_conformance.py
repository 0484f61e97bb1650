"""The conformance run: it passes what is right, and catches each planted fault."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bnb_core import cli, ops_registry
from bnb_core.conformance import (
    LEVELS,
    SCENARIOS,
    DeviceLost,
    Failure,
    Findings,
    KernelTrial,
    as_html,
    as_json,
    as_markdown,
    claims,
    conform,
    end_to_end,
    operators_of,
    speed,
    speed_of,
    try_case,
    try_scenario,
)
from bnb_core.conformance.attempts import ASPECTS, Subject
from bnb_core.conformance.golden import golden_cases
from bnb_core.conformance.large import LARGE
from bnb_core.ops_registry import OPS, QUANT_TYPES, Kernel, Tolerance, differences, kernels_for
from bnb_core.ops_registry.formats import BLOCKSIZES, STORAGES

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
        value = fault(value, A, absmax, blocksize)
        return value if out is None else out.copy_(value)

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


def takes_strided_scales_as_contiguous(value: Tensor, A: Tensor, absmax: Tensor, blocksize: int) -> Tensor:
    if absmax.is_contiguous() or absmax.numel() < 2:
        return value
    each = absmax.reshape(-1).repeat_interleave(blocksize)[: value.numel()]
    wrong = absmax.as_strided((absmax.numel(),), (1,)).repeat_interleave(blocksize)[: value.numel()]
    return (value.flatten().float() / each * wrong).to(value.dtype).reshape(value.shape).clone()


# What finds a fault, and what is said of it.
FAULTS = {
    swapped_nibbles: ("golden bytes", "result"),
    wrong_tail: ("agreement", "result"),
    scales_one_block_off: ("agreement", "result"),
    takes_strided_scales_as_contiguous: ("strided", "result"),
    mutated_input: ("agreement", "it wrote to absmax, which its schema does not mark as mutated"),
    view: ("agreement", "a result is a view"),
    other_bits_each_time: ("agreement", "two calls gave other bits"),
    wrong_dtype: ("agreement", "torch.float64"),
    raises: ("agreement", "it raised KeyError: 'no such card'"),
}


@pytest.fixture
def planted() -> Iterator[Callable[..., KernelTrial]]:
    """Registers a kernel of dequantize_4bit, and tries it."""
    rows: list[Kernel] = []

    def plant(fault: Callable[..., Any], **fields: Any) -> KernelTrial:
        fields = {"op": "dequantize_4bit", "fn": dequantize(fault)} | fields
        row = Kernel(device="cpu", name="toy/a", priority=99, **fields)
        ops_registry.register_kernels([row])
        rows.append(row)
        return next(conform("cpu", [row.op]))

    yield plant
    for row in rows:
        ops_registry.unregister_kernel(row)


def same(value: Tensor, *rest: Any) -> Tensor:
    return value


# One that each operator's cases must find: the operator, an argument, and what a faulty kernel makes of it.
ARGUMENT_FAULTS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "columns past 512": ("gemm_4bit", "A", lambda A: torch.where(torch.arange(A.shape[-1]) < 512, A, 0)),
    "NaN activations": ("gemm_4bit", "A", lambda A: A.nan_to_num(0.0)),
    "NaN scales": ("gemm_4bit", "absmax", lambda absmax: absmax.nan_to_num(0.0)),
    "one outer scale": ("gemm_4bit", "absmax", lambda a: a[:1].expand_as(a).clone() if a.numel() < 9 else a),
    "one outer scale of a table": ("embedding_4bit", "absmax", lambda a: a[:1].expand_as(a) if a.numel() == 2 else a),
    "indices of a byte": ("embedding_4bit", "indices", lambda indices: indices & 0xFF),
    "NaN scales of a table": ("embedding_4bit", "absmax", lambda absmax: absmax.nan_to_num(0.0)),
    "NaN rows in 16 bits": ("int8_vectorwise_quant", "A", lambda A: A if A.dtype == torch.float32 else A.nan_to_num(0)),
    "flushed rows": ("int8_vectorwise_quant", "A", lambda A: torch.where(A.abs() < 2**-126, 0, A)),
    "NaN row scales": ("int8_mm_dequant", "row_stats", lambda stats: stats.nan_to_num(0.0)),
    "NaN column scales": ("int8_scaled_mm", "col_stats", lambda stats: stats.nan_to_num(0.0)),
    "NaN in a layer": ("int8_linear", "A", lambda A: A.nan_to_num(0.0)),
    "columns past 1024": ("int8_mixed_scaled_mm", "CB", lambda B: torch.where(torch.arange(B.shape[-1]) < 1024, B, 0)),
    "a short code": ("quantize_blockwise", "code", lambda code: torch.cat([code, code.new_zeros(256 - len(code))])),
    "eps": ("optimizer_update_32bit", "eps", lambda eps: 1e-8),
    "NaN gradients": ("optimizer_step_32bit", "grads", lambda grads: [g.nan_to_num(0.0) for g in grads]),
}


@pytest.fixture
def agreement_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for aspect in [*ASPECTS][1:]:
        monkeypatch.delitem(ASPECTS, aspect)


@pytest.mark.usefixtures("agreement_only")
@pytest.mark.parametrize("fault", ARGUMENT_FAULTS)
def test_a_fault_that_few_arguments_show_is_caught(fault: str, planted: Callable[..., KernelTrial]) -> None:
    op, name, change = ARGUMENT_FAULTS[fault]
    position = OPS[op].parameters.index(name)

    def faulty(*args: Any, out: Any = None) -> Any:
        with ops_registry.force("reference"):
            changed = (*args[:position], change(args[position]), *args[position + 1 :])
            value = getattr(torch.ops.bnb_core, op).default(*changed)
        for target, made in zip(out, value, strict=True) if isinstance(out, tuple) else ():
            target.copy_(made)
        return out.copy_(value) if isinstance(out, Tensor) else value

    assert planted(same, op=op, fn=faulty).aspects["agreement"].failed


def beyond_65536(value: Tensor, *rest: Any) -> Tensor:
    value.flatten()[2**16 :].zero_()
    return value


def saturated(value: Tensor, *rest: Any) -> Tensor:
    return value.clamp(-65504, 65504) if value.dtype == torch.float16 else value


def flushed(value: Tensor, *rest: Any) -> Tensor:
    return torch.where(value.abs() < 2**-14, value * 0, value) if value.dtype == torch.float16 else value


def leaves(value: Tensor, *rest: Any) -> Tensor:
    raise SystemExit(3)


@pytest.mark.usefixtures("agreement_only")
@pytest.mark.parametrize("fault", [beyond_65536, saturated, flushed, leaves], ids=lambda fault: fault.__name__)
def test_a_fault_of_few_values_is_caught(fault: Callable[..., Any], planted: Callable[..., KernelTrial]) -> None:
    assert planted(fault).aspects["agreement"].failed


def test_results_in_memory_of_the_call_before_are_caught(planted: Callable[..., KernelTrial]) -> None:
    kept: dict[Any, Tensor] = {}

    def in_a_buffer(value: Tensor, *rest: Any) -> Tensor:
        return kept.setdefault((value.shape, value.dtype), value.clone()).copy_(value)

    said = {sentence for failure in planted(in_a_buffer).failures for sentence in failure.sentences}
    assert "two calls returned the same memory" in said


def test_json_has_no_infinity(planted: Callable[..., KernelTrial]) -> None:
    trial = planted(wrong_tail)
    assert trial.share == float("inf")
    found = json.loads(as_json(Findings("cpu", "some", {}, [trial])), parse_constant=pytest.fail)
    assert found["kernels"][0]["aspects"]["agreement"]["share"] is None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(fault: Callable[..., Any], planted: Callable[..., KernelTrial]) -> None:
    trial = planted(fault)
    assert (trial.op, trial.kernel, trial.kind) == ("dequantize_4bit", "toy/a", "native")
    aspect, sentence = FAULTS[fault]
    assert any(sentence in said for failure in trial.failures if failure.aspect == aspect for said in failure.sentences)
    assert trial.aspects[aspect].failed


def test_an_out_form_that_writes_nothing_is_caught(planted: Callable[..., KernelTrial]) -> None:
    right_kernel = dequantize(same)

    def writes_nothing(
        A: Tensor,
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        shape: list[int],
        dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Any:
        return right_kernel(A, absmax, blocksize, quant_type, shape, dtype)

    trial = planted(same, fn=writes_nothing)
    assert {failure.aspect for failure in trial.failures} == {"out form"}


def test_a_fault_that_the_reference_shares_is_caught_by_golden_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = kernels_for("dequantize_4bit", "cpu")[-1]
    original = reference.function

    def swapped(*args: Any, out: Tensor | None = None) -> Any:
        value = swapped_nibbles(original(*args))
        return value if out is None else out.copy_(value)

    monkeypatch.setitem(vars(reference), "function", swapped)
    (trial,) = (trial for trial in conform("cpu", ["dequantize_4bit"]) if trial.kind == "reference")
    assert {failure.aspect for failure in trial.failures} == {"golden bytes"}


def test_a_tolerance_too_loose_is_refused() -> None:
    row = Kernel(op="gemm_4bit", device="cpu", name="toy/a", fn=raises, tolerance=Tolerance({torch.float32: 1e-3}))
    with pytest.raises(ValueError, match=r"toy/a declares .* for gemm_4bit, looser than the operator's"):
        ops_registry.register_kernels([row])


def test_a_right_kernel_passes_every_case(planted: Callable[..., KernelTrial]) -> None:
    trial = planted(same, limits={"blocksize": {64}})
    assert not trial.failures
    tally = trial.aspects["agreement"]
    row = kernels_for("dequantize_4bit", "cpu")[0]
    assert tally.passed > 0 and tally.refused > 0
    assert tally.passed + tally.refused == len(Subject(OPS["dequantize_4bit"], "cpu", row).cases)
    assert set(trial.dtypes) == {"float32", "float16", "bfloat16"}
    assert trial.share == 0 and all(trial.aspects[name].passed for name in trial.aspects if name != "golden bytes")


def test_the_distance_is_a_share_of_the_tolerance(planted: Callable[..., KernelTrial]) -> None:
    def half(*args: Any, out: Tensor | None = None) -> Any:
        with ops_registry.force("reference"):
            value = torch.ops.bnb_core.gemm_4bit.default(*args)
        # fp32 has the tightest tolerance, 4e-6 of the largest value
        if value.dtype == torch.float32 and value.numel():
            value = value + value.abs().nan_to_num(0.0).max() * 2e-6
        return value if out is None else out.copy_(value)

    trial = planted(same, op="gemm_4bit", fn=half)
    shares = {name: tally.share for name, tally in trial.dtypes.items()}
    assert 0.4 < shares["float32"] < 0.6 and shares["float16"] == 0


def test_every_dtype_storage_and_block_size_is_tried() -> None:
    row = kernels_for("quantize_4bit", "cpu")[-1]
    op = OPS["quantize_4bit"]
    tried = [op.complete(case.args) for case in Subject(op, "cpu", row).cases]
    assert {args[1] for args in tried} == set(BLOCKSIZES)
    assert {args[3] for args in tried} == set(STORAGES) and {args[2] for args in tried} == set(QUANT_TYPES)


def test_a_kernel_that_takes_nothing_fails(planted: Callable[..., KernelTrial]) -> None:
    trial = planted(same, why_not=lambda *args: "not today")
    assert ("it refuses every case of its operator",) in [failure.sentences for failure in trial.failures]


def test_a_refusal_that_raises_is_a_failure(planted: Callable[..., KernelTrial]) -> None:
    def broken(*args: Any) -> str:
        raise KeyError("no such table")

    trial = planted(same, why_not=broken)
    assert trial.failures and "it raised KeyError: 'no such table'" in trial.failures[0].sentences[0]


def test_the_program_of_a_failure_shows_it_again(
    planted: Callable[..., KernelTrial], capsys: pytest.CaptureFixture[str]
) -> None:
    for aspect, failure in {failure.aspect: failure for failure in planted(wrong_tail).failures}.items():
        assert len(failure.program.splitlines()) == 3 and repr(aspect) in failure.program
        exec(failure.program, {})
        assert failure.sentences[0] in capsys.readouterr().out


def test_a_case_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="dequantize_4bit has no kernel 'cpu/abacus' on cpu"):
        try_case("dequantize_4bit", "cpu", "cpu/abacus", "agreement", "x")
    with pytest.raises(ValueError, match="dequantize_4bit has no case 'x' of strided"):
        try_case("dequantize_4bit", "cpu", "reference", "strided", "x")
    with pytest.raises(ValueError, match="there is no aspect 'colour'; there are agreement, golden bytes, "):
        try_case("dequantize_4bit", "cpu", "reference", "colour", "x")
    with pytest.raises(ValueError, match="there is no scenario 'x'; there are Linear4bit"):
        try_scenario("cpu", "x")
    with pytest.raises(ValueError, match="int8_mm has no kernel 'cpu/abacus' on cpu"):
        speed_of("int8_mm", "cpu", "cpu/abacus")
    with pytest.raises(ValueError, match="there is no operator 'x'; there are quantize_blockwise"):
        next(conform("cpu", ["x"]))
    with pytest.raises(ValueError, match="there is no scenario 'x'; there are Linear4bit"):
        next(end_to_end("cpu", names=["x"]))
    with pytest.raises(ValueError, match="there is no level 'x'; there are inference"):
        next(end_to_end("cpu", "x"))


def test_a_device_that_makes_no_arguments_is_a_failure() -> None:
    (trial,) = conform("abacus", ["int8_mm"])
    assert trial.failures and all("no arguments for it: RuntimeError" in f.sentences[0] for f in trial.failures)


def test_names_of_cases_tell_them_apart() -> None:
    for op in OPS.values():
        for attempts in ASPECTS.values():
            names = [attempt.case for attempt in attempts(Subject(op, "cpu", kernels_for(op.name, "cpu")[-1]))]
            assert len(names) == len(set(names))


@pytest.mark.parametrize("op", [op for op in OPS if any(golden_cases(op, "cpu"))])
def test_golden_bytes_are_those_of_the_kernels(op: str, device: torch.device) -> None:
    for case in golden_cases(op, device.type):
        args = torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, OPS[op].complete(case.args))
        with ops_registry.fallback("allow"):
            results = getattr(torch.ops.bnb_core, op).default(*args)
        found = [] if results is None else list(results) if isinstance(results, tuple) else [results]
        found += [args[i] for i in OPS[op].mutated]
        assert not differences(found, case.results, OPS[op].tolerance), case.name


def test_levels() -> None:
    assert set(LEVELS) == {"inference", "qlora", "optimizers", "full"}
    assert all(set(ops) <= set(OPS) for ops in LEVELS.values())
    assert set(operators_of("full")) == set(OPS)
    assert {level for scenario in SCENARIOS for level in scenario.levels} == set(LEVELS)
    with pytest.raises(ValueError, match="there is no level 'some'; there are inference, qlora"):
        operators_of("some")


@pytest.mark.parametrize(
    ("op", "found"),
    [
        ("dequantize_4bit", ["gradients"]),
        ("quantize_4bit", ["quantized here"]),
        ("gemm_4bit", ["forward", "checkpoint"]),
    ],
)
def test_a_fault_is_found_by_what_is_built_on_it(
    op: str, found: list[str], planted: Callable[..., KernelTrial]
) -> None:
    def doubled(*args: Any, out: Tensor | None = None) -> Any:
        with ops_registry.force("reference"):
            value = getattr(torch.ops.bnb_core, op).default(*args)
        return (value[0], 2 * value[1]) if isinstance(value, tuple) else 2 * value

    assert planted(same, op=op, fn=doubled).failures
    names = [f"Linear4bit nf4 float32, {what}" for what in ("forward", "checkpoint", "quantized here", "gradients")]
    trials = list(end_to_end("cpu", names=names))
    assert [trial.name for trial in trials] == names
    assert [trial.name.rpartition(", ")[2] for trial in trials if trial.failure] == found


def test_scenarios_name_the_kernels_that_ran() -> None:
    name = "adam, 8-bit state"
    (trial,) = end_to_end("cpu", names=[name])
    (kernel,) = trial.kernels
    first = next(row for row in kernels_for("optimizer_step_8bit_blockwise", "cpu") if row.unavailable is None)
    assert kernel == f"optimizer_step_8bit_blockwise: {first.name}" and trial.failure is None


def test_times_are_of_every_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.Sizes, "rows", 16)
    monkeypatch.setattr(speed, "SECONDS", 1e-4)
    for op in OPS:
        row = next(row for row in kernels_for(op, "cpu") if row.unavailable is None)
        found = speed_of(op, "cpu", row.name)
        if row.is_reference:
            assert found is None
        else:
            assert found is not None and min(found.seconds, found.reference, found.copy, found.megabytes) > 0


def test_a_kernel_that_fails_on_larger_arguments_is_a_failure(planted: Callable[..., KernelTrial]) -> None:
    def small_only(value: Tensor, *rest: Any) -> Tensor:
        if value.numel() > 100_000:
            raise MemoryError("the card is full")
        return value

    planted(small_only)
    trial = next(conform("cpu", ["dequantize_4bit"], kernels=["toy/a"], timed=True))
    (failure,) = trial.failures
    assert (failure.aspect, failure.sentences) == ("times", ("it raised MemoryError: the card is full",))
    with pytest.raises(MemoryError):
        exec(failure.program, {})


def test_the_command_and_its_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"found.{kind}" for kind in ("json", "md", "html", "png")]
    reports = [word for file in files for word in ("--report", str(file))]
    assert cli.main(["conformance", "--op", "int8_vectorwise_dequant", *reports]) == 0
    printed = capsys.readouterr().out
    found = json.loads(files[0].read_text())
    rows = [k.name for k in kernels_for("int8_vectorwise_dequant", "cpu") if k.unavailable is None]
    assert [trial["kernel"] for trial in found["kernels"]] == rows
    assert f"{len(rows)} kernels conform" in printed
    assert (found["kernels"][0]["speed"] is None) == (rows[0] == "reference")
    twice = ["--op", "int8_mm_dequant", "--op", "int8_mm_dequant"]
    assert cli.main(["conformance", *twice, "--kernel", "reference"]) == 0
    assert "1 kernels conform" in capsys.readouterr().out
    assert "| `int8_vectorwise_dequant` | `reference` | reference | 16 | 0 | 0 | same bits |" in files[1].read_text()
    assert "<code>int8_vectorwise_dequant</code>" in files[2].read_text()
    assert files[3].read_bytes().startswith(b"\x89PNG")


def test_a_level_says_what_may_be_claimed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(LEVELS, "optimizers", ("optimizer_step_32bit",))
    assert cli.main(["conformance", "--level", "optimizers", "--no-times"]) == 0
    printed = capsys.readouterr().out
    assert "level optimizers holds: operators: " in printed
    assert "level inference" not in printed
    assert "18 scenarios of layers and optimizers pass" in printed


def test_the_command_says_what_failed(planted: Callable[..., KernelTrial], capsys: pytest.CaptureFixture[str]) -> None:
    trial = planted(wrong_tail)
    assert cli.main(["conformance", "--op", "dequantize_4bit", "--no-times"]) == 1
    printed = capsys.readouterr().out
    assert "toy/a            failed" in printed and "kernels FAILED" in printed and "try_case(" in printed
    findings = Findings("cpu", "operators", {"machine": "<none>"}, [trial])
    assert findings.failed == 1
    text = as_markdown(findings)
    assert "| `dequantize_4bit` | `toy/a` | native | " in text and "```python\nimport bnb_core" in text
    page = as_html(findings)
    assert (
        "<td class=failed>" in page and "&lt;none&gt;" in page and "from bnb_core.conformance import try_case" in page
    )


def test_claims_need_every_operator_and_the_scenarios(planted: Callable[..., KernelTrial]) -> None:
    scenarios = list(end_to_end("cpu", names=["adam, 8-bit state"]))
    trials = [KernelTrial(op, "reference", "reference") for op in operators_of("optimizers")]
    assert not list(claims(Findings("cpu", "full", {}, trials[1:], scenarios)))
    ((level, holds, why),) = claims(Findings("cpu", "full", {}, trials, scenarios))
    assert (level, holds, why) == ("optimizers", True, f"operators: 0 native, 0 composed, {len(trials)} reference")
    trials[0].failures.append(Failure("agreement", "x", ("wrong",), ""))
    ((level, holds, why),) = claims(Findings("cpu", "full", {}, trials, scenarios))
    assert (holds, why) == (False, "fails in quantize_blockwise")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "abacus"], "there is no device abacus here; there is cpu"),
        (["--kernel", "cpu/abacus"], "cpu has no kernel cpu/abacus; there are "),
        (["--op", "gemm"], "there is no operator gemm; there are "),
        (["--op", "int8_mm", "--kernel", "composed"], "no kernel was tried"),
        (["--report", "found.pdf"], "found.pdf is none of .html, .json, .md, .png"),
        (["--report", "folder.md"], "folder.md is a folder"),
        (["--report", "no/such/found.md"], "no/such/found.md: there is no folder"),
    ],
)
def test_wrong_use_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.md").mkdir()
    assert cli.main(["conformance", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), DeviceLost("cpu takes no more work from this process")])
def test_a_run_that_ends_early_writes_what_it_found(
    ends: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trials(*arguments: Any, **options: Any) -> Iterator[KernelTrial]:
        yield from conform("cpu", ["int8_vectorwise_dequant"], kernels=["reference"])
        raise ends

    monkeypatch.setattr("bnb_core.cli.conformance.conform", trials)
    assert cli.main(["conformance", "--report", str(tmp_path / "found.json")]) in (1, cli.INTERRUPTED)
    printed, (trial,) = capsys.readouterr(), json.loads((tmp_path / "found.json").read_text())["kernels"]
    assert trial["op"] == "int8_vectorwise_dequant" and "1 kernels conform" in printed.out
    assert ("takes no more work" in printed.out) != ("interrupted" in printed.err)


def test_a_device_that_is_lost_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the kernel that it was."""
    run = importlib.import_module("bnb_core.conformance.run")
    failure = Failure("agreement", "a case", ("it raised",), "")
    trial = KernelTrial("int8_mm", "reference", "reference", failures=[failure])
    monkeypatch.setattr(run, "_tried", lambda subject, beyond: trial)
    monkeypatch.setattr(run, "_lost", lambda device: "an illegal memory access")
    trials = conform("cpu", ["int8_mm", "int8_mm_dequant"], kernels=["reference"])
    assert next(trials) is trial
    with pytest.raises(DeviceLost, match="after int8_mm, reference: agreement, a case: an illegal memory access"):
        next(trials)


def test_a_picture_without_matplotlib_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert cli.main(["conformance", "--report", "found.png"]) == 2
    assert "found.png needs matplotlib, which is not installed" in capsys.readouterr().err


def run_pytest(folder: Path, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "bnb_core.conformance"]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_it_is_a_suite_for_pytest_too(tmp_path: Path) -> None:
    printed = run_pytest(tmp_path, "-k", "int8_mm_dequant or (adam and not adamw and 8-bit)")
    assert "2 passed" in printed, printed
    printed = run_pytest(tmp_path, BNB_CORE_TEST_LEVEL="all")
    assert "BNB_CORE_TEST_LEVEL is 'all', expected 'quick' or 'full'" in printed


def test_what_is_large_has_arguments_that_a_check_takes() -> None:
    """On the meta device: no memory is touched."""
    for case in LARGE:
        op = OPS[case.op]
        args = op.complete(case.args("meta"))
        op.check(*args)
        sizes = [arg.numel() for arg in args if isinstance(arg, Tensor)]
        sizes += [torch.Size(result.shape).numel() for result in op.results(*args) if result]
        assert max(2 * size if "4bit" in case.op else size for size in sizes) > 2**31
