"""The benchmark: that the command runs all of its works, and how it checks, samples and judges."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peers import drop_in

from benchmarks import decoding, gpu, rows
from benchmarks.__main__ import main, matches
from benchmarks.measure import measure
from benchmarks.peers import missing
from benchmarks.timing import Pace, Racer, notch, race
from benchmarks.work import OURS, Budget, Contestant, Target, Work
from benchmarks.works import Sizes, families
from bnb_core.ops_registry import OPS

ROOT = Path(__file__).resolve().parents[1]
SHORT = Pace(seconds=1e-4, sample=1e-5)
A = torch.arange(1.0, 257)


def negated(a):
    return lambda: -a


def work(*others: Contestant, targets=()) -> Work:
    return Work("some/work", lambda: A, (Contestant(OURS, negated), *others), targets)


def test_command_measures_every_work_and_writes_what_it_found(tmp_path):
    sizes, out = 1e-6, tmp_path / "out"
    options = ("--scale", str(sizes), "--seconds", "1e-4", "--threads", "1", "--peers", "torch", "--output", str(out))
    command = [sys.executable, "-m", "benchmarks", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads((out / "results.json").read_text())
    assert found["machine"]["threads"] == 1
    assert all(rate["before"]["median"] > 0 and rate["after"]["median"] > 0 for rate in found["limits"])
    works = [work for family in found["families"] for work in family["works"]]
    expected = dict.fromkeys(work.name for family in families(Sizes(sizes)) for work in family.works)
    assert [work["work"] for work in works] == list(expected)
    for work in works:
        ours, *others = work["contestants"]
        assert ours["seconds"] >= ours["best"] > 0
        assert ours["ratio"] == 1
        assert set(work["kernels"]) <= set(OPS) and work["kernels"]
        for other in others:
            assert other["ratio"] is not None or other["absent"] == "not chosen", other
            assert (other["distance"] is None) == (other["limit"] or other["absent"] is not None)
        assert all(target["verdict"] in ("met", "missed", "unknown") for target in work["targets"])
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "results.txt").read_text() in run.stdout
    assert "bitsandbytes: not chosen" in run.stdout


def test_the_drop_in_is_no_peer():
    drop_in()
    assert missing("bitsandbytes", ["bitsandbytes"]) == "what is installed by that name is bnb_core's drop-in"


def test_names_are_unique_and_targets_are_those_of_the_contestants():
    names = [work.name for family in families(Sizes()) for work in family.works]
    assert len(set(names)) == len(names)
    with pytest.raises(AssertionError, match="nobody"):
        work(targets=(Target("nobody", 2),))


@pytest.mark.parametrize(
    ("patterns", "found"),
    [([], True), (["linear"], True), (["linear/*/bf16"], True), (["linear/M=?/*"], True), (["fp32", "int8"], False)],
)
def test_works_are_chosen_by_parts_of_names_and_patterns(patterns, found):
    assert matches("linear/M=1/bf16", patterns) is found


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no_such_work"], "no work is named no_such_work"),
        (["--scale", "2"], "--scale is above 0 and at most 1"),
        (["--peers", "torch,somebody"], "no peer is named somebody; there are torch, bitsandbytes"),
        (["--force", "cpu/none"], "no kernel is named cpu/none; known are"),
        (["--kernels", "cpu/none"], "no kernel is named cpu/none; known are"),
    ],
)
def test_wrong_use_ends_with_a_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_list_measures_nothing(capsys):
    assert main(["--list", "overhead"]) == 0
    assert "≤ 15 µs" in capsys.readouterr().out


def test_contestants_that_cannot_be_compared_are_named_and_not_timed():
    def broken(a):
        raise OSError("no such library")

    others = (
        Contestant("right", negated, 1e-6),
        Contestant("wrong", lambda a: lambda: 2 - a, 1e-6),
        Contestant("nan", lambda a: lambda: a * float("nan"), 1e-6),
        Contestant("shorter", lambda a: lambda: -a[1:], 1e-6),
        Contestant("broken", broken, 1e-6),
        Contestant("not there", broken, 1e-6, "bitsandbytes"),
        Contestant("limit", lambda a: lambda: a + a),
    )
    absent = {c.name: c.absent for c in measure(work(*others), SHORT, peers=("torch",)).contestants}
    assert absent["right"] is None and absent["limit"] is None
    assert absent["wrong"].startswith("wrong: its result is 0.01")
    assert "wrong: its result is nan away" in absent["nan"]
    assert "wrong: its result is inf away" in absent["shorter"]
    assert absent["broken"] == "failed: OSError: no such library"
    assert absent["not there"] == "not chosen"


def test_kernels_beside_ours_are_those_that_ran():
    q, absmax, code = torch.zeros(64, dtype=torch.uint8), torch.ones(1), torch.linspace(-1, 1, 256)
    op = torch.ops.bnb_core.dequantize_blockwise

    def reading(values):
        return torch.ops.bnb_core.quantize_blockwise(values, code, 64)[0]

    ours = Contestant(OURS, lambda _: lambda: op(q, absmax, code, 64, torch.float32), read=reading)
    outcome = measure(Work("w", lambda: None, [ours]), SHORT, ("torch",), kernels=("reference",))
    assert list(outcome.kernels) == ["dequantize_blockwise"]
    assert [c.name for c in outcome.contestants if c.ratio] == [OURS, "reference"]
    outcome = measure(work(), SHORT, ("torch",), kernels=("reference",))
    assert outcome.contestants[1].absent == "no such kernel for these ops"


def test_verdicts():
    ratios = {"a": 6.0, "b": 3.0}
    assert Target("a", 2).margin(1.0, ratios) == 3
    assert Target(("a", "b", "c"), 2).margin(1.0, ratios) == 1.5
    assert Target("c", 2).margin(1.0, ratios) is None
    assert Budget(10).margin(20e-6, {}) == pytest.approx(0.5)
    limit = Contestant("limit", negated)
    verdicts = measure(work(limit, targets=(Target("limit", 1e-9), Budget(1e-9))), SHORT, ("torch",)).verdicts
    assert [verdict.word for verdict in verdicts] == ["met", "missed"]
    assert [verdict.text for verdict in verdicts] == ["≥ 1e-09× limit", "≤ 1e-09 µs"]


def test_rounds_run_everybody_and_slow_ones_now_and_then():
    ran: list[str] = []

    def racer(name: str, rounds: int) -> Racer:
        class Known(Racer):
            def calibrate(self, pace: Pace) -> None:
                self.rounds = rounds

        return Known(lambda: ran.append(name), nullcontext, "torch")

    ours, fast, slow = racer("ours", 12), racer("fast", 99), racer("slow", 3)
    race([ours, fast, slow], Pace(rounds=(12, 12)))
    assert [len(r.samples) for r in (ours, fast, slow)] == [12, 12, 12]
    assert [number for number, sample in enumerate(slow.samples) if sample is not None] == [3, 7, 11]
    assert None not in ours.samples and None not in fast.samples
    orders = {tuple(ran[i : i + 2]) for i in (0, 2, 4)}
    assert len(orders) == 2


def test_notch_is_that_of_a_box_plot():
    assert notch([1.0]) == float("inf")
    assert notch([2.0] * 9) == 0
    assert notch([0.0, 1.0, 2.0, 3.0, 4.0]) == pytest.approx(1.57 * 2 / 5**0.5)


def test_benchmark_of_gpus_runs_on_the_cpu_too(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert (
        gpu.main(["--device", "cpu", "--size", "64", "--rounds", "1", "--output", str(path), "gemm_4bit", "adamw"]) == 0
    )
    found = json.loads(path.read_text())["microseconds"]
    assert len(found) == len(gpu.ROWS) + 2
    assert all(times["copy"] > 0 and len(times) > 1 for times in found.values())
    assert "torch bf16" in found["gemm_4bit/1 rows"] and "torch fused fp32" in found["adamw, 32-bit"]
    assert "gemm_4bit/4096 rows" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--size", "64", "--rounds", "1", "no such work"])


def test_what_was_measured_until_a_kernel_failed_is_shown(tmp_path, monkeypatch, capsys):
    measured = gpu.measured

    def failing(calls, device, rounds):
        if "torch bf16" in calls:
            raise RuntimeError("illegal memory access")
        return measured(calls, device, rounds)

    monkeypatch.setattr(gpu, "measured", failing)
    path = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--size", "64", "--rounds", "1", "--output", str(path), "4bit"]) == 1
    found = json.loads(path.read_text())["microseconds"]
    assert list(found) == ["quantize_4bit/64", "dequantize_4bit/64", "gemm_4bit/1 rows"] and found["quantize_4bit/64"]
    printed = capsys.readouterr()
    assert "dequantize_4bit/64" in printed.out
    assert "ended in gemm_4bit/1 rows: RuntimeError: illegal memory access" in printed.err.replace("\n", " ")


def test_decoding_runs_on_the_cpu_too(capsys):
    assert (
        decoding.main(["--device", "cpu", "--blocks", "1", "--hidden", "256", "--context", "8", "--rounds", "1"]) == 0
    )
    printed = capsys.readouterr().out
    assert "bnb_core NF4" in printed and "torch bf16" in printed


def test_rows_from_which_decoding_pays(capsys):
    times = {1: {"ours": 1.0, "composed": 2.0}, 4: {"ours": 2.0, "composed": 2.0}, 16: {"ours": 3.0, "composed": 2.0}}
    assert rows.crossing(times, "ours") == 4 and rows.crossing(times, "refused") == 0
    assert rows.main(["--device", "cpu", "--rounds", "1", "--shape", "64,128", "--rows", "1", "4"]) == 0
    printed = capsys.readouterr().out
    assert "64 x 128" in printed and "torch bf16" in printed and "up to rows:" in printed


@pytest.mark.parametrize(
    ("command", "arguments", "sentence"),
    [
        (rows, ("--device", "cpu", "--shape", "4096"), "invalid shape value: '4096'"),
        (gpu, ("--device", "nowhere"), "'nowhere' is no device"),
        (gpu, ("--device", "cpu", "--rounds", "0"), "expected at least 1, got 0"),
        (decoding, ("--device", "cpu", "--hidden", "100"), "--hidden is 100, expected a multiple of 128"),
    ],
)
def test_wrong_use_of_the_benchmarks_of_gpus_ends_with_a_sentence(command, arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2 and sentence in capsys.readouterr().err
