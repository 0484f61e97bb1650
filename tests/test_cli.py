"""The command line: what it prints, its exit status, its sentences for wrong use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bnb_core
from bnb_core import cli, ops_registry
from bnb_core.cli.check import TRIALS, check_device
from bnb_core.cli.console import byte_count
from bnb_core.ops_registry import available_devices

HERE = ", ".join(available_devices())
WEIGHT = "model.layers.0.mlp.up_proj.weight"


def save_model(folder: Path, layers: int = 2, rows: int = 64) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(rows, 128) for i in range(layers)}
    save_file(tensors | {"model.embed_tokens.weight": torch.randn(30, 128)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def run(*arguments: object, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; `before` runs first."""
    code = f"{before}; import sys; from bnb_core.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# -- info, check, explain --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_forced")
@pytest.mark.parametrize("arguments", [[], ["info"]])
def test_info_says_what_is_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert f"bnb_core {bnb_core.__version__}" in printed
    assert torch.__version__ in printed
    for record in ops_registry.backends():
        assert [record.name, record.status] in [line[:2] for line in lines]
    assert [line for line in printed.splitlines() if line.endswith(" ")] == []
    for op in ops_registry.OPS:
        here = next(kernel for kernel in ops_registry.kernels_for(op, "cpu") if kernel.unavailable is None)
        assert [op, here.name] in [line[:2] for line in lines]


def test_module_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "bnb_core", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"bnb_core {bnb_core.__version__}\n")


def words(printed: str) -> str:
    """What was printed, as if it had one line."""
    return " ".join(printed.split())


@pytest.mark.usefixtures("nothing_forced")
def test_info_says_of_each_kernel_why_it_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    def nothing() -> None:
        """Never called."""

    named = {"op": "int8_mm", "device": "cpu", "fn": nothing}
    first = ops_registry.Kernel(name="toy/first", priority=100, **named)
    better = ops_registry.Kernel(name="toy/better", priority=200, unavailable="the cow is out", **named)
    ops_registry.register_kernels([first, better])
    try:
        assert cli.main(["info"]) == 0
        printed = words(capsys.readouterr().out)
        assert "cpu toy/better 1 the cow is out" in printed
        assert "cpu toy/first 1 1 cpu " in printed
        assert "toy/first comes first" in printed
        for kernel in ops_registry.kernels_for("int8_mm", "cpu"):
            assert kernel.unavailable is None or kernel.unavailable in printed
        with bnb_core.force("toy/better"):
            assert cli.main(["info"]) == 0
        printed = words(capsys.readouterr().out)
        assert "cpu toy/better 1 the cow is out" in printed
        assert "toy/better is forced" in printed
        assert "int8_mm none: toy/better is forced" in printed
    finally:
        for kernel in (first, better):
            ops_registry.unregister_kernel(kernel)


def run_module(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bnb_core", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("BNB_CORE_FORCE", "cpu/avx1024", "BNB_CORE_FORCE: no kernel is named cpu/avx1024; known are reference, "),
        ("BNB_CORE_FALLBACK", "maybe", "BNB_CORE_FALLBACK is 'maybe', expected one of error, warn, allow"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_info_prints_what_is_there(name: str, value: str, sentence: str) -> None:
    others = {"BNB_CORE_FORCE": "", "BNB_CORE_FALLBACK": ""}
    for arguments in ([], ["explain", "int8_mm"]):
        done = run_module(*arguments, **others | {name: value})
        assert done.returncode == 2
        assert done.stderr.startswith(f"bnb-core: {sentence}")
        assert len(done.stderr.splitlines()) == 1
        assert ("Backends" in done.stdout and "optimizer_step_8bit" in done.stdout) == (not arguments)
    assert run_module("--version", **others | {name: value}).returncode == 0
    script = Path(sys.executable).with_name("bnb-core")
    if script.exists():
        done = subprocess.run([script], env=os.environ | others | {name: value}, capture_output=True, text=True)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    imported = subprocess.run(
        [sys.executable, "-c", "import bnb_core", "-m", "bnb_core"],
        env=os.environ | others | {name: value},
        capture_output=True,
        text=True,
    )
    assert "Traceback" in imported.stderr and f"ValueError: {sentence}" in imported.stderr


@pytest.mark.parametrize(("value", "said"), [("reference", "BNB_CORE_FORCE reference"), ("", "not set: nothing")])
def test_info_says_the_settings(value: str, said: str) -> None:
    printed = words(run_module(BNB_CORE_FORCE=value, BNB_CORE_FALLBACK="error").stdout)
    assert said in printed
    assert "BNB_CORE_FALLBACK error" in printed
    assert ("int8_mm reference" in printed) == bool(value)


def test_info_shows_a_backend_that_failed(tmp_path: Path) -> None:
    (tmp_path / "broken_backend.py").write_text("\nraise OSError('libnothing.so is missing')")
    package = tmp_path / "broken_backend-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-backend\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[bnb_core.backends]\nbroken = broken_backend\n")
    done = run("info", before=f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert done.returncode == 0
    assert "failed" in done.stdout
    printed = "".join(done.stdout.split())  # a path may stand on several lines
    place = f"({tmp_path}/broken_backend.py:2)(entry point broken_backend of broken-backend 1)".replace(" ", "")
    assert f"OSError:libnothing.soismissing{place}" in printed


def test_check_succeeds_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [[device, "ok"] for device in available_devices()]
    assert lines[-1] == "SUCCESS"


@pytest.mark.usefixtures("nothing_forced")
def test_check_finds_a_wrong_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    def lazy(*args: object, **options: object) -> None:
        """Leaves the parameter as it is."""

    name = "optimizer_step_8bit_blockwise"
    kernel = ops_registry.Kernel(op=name, device="cpu", name="cpu/lazy", fn=lazy, priority=100)
    ops_registry.dispatch.register_kernels([kernel])
    try:
        (failure,) = (trial.failure for trial in check_device("cpu") if trial.failure)
        assert failure.case == "adam, 8-bit state" and failure.sentences[0] == "the parameter did not change"
        assert cli.main(["check"]) == 1
        assert "FAILED on cpu" in capsys.readouterr().out
    finally:
        ops_registry.unregister_kernel(kernel)


def test_check_reports_a_device_that_fails() -> None:
    trials = check_device("meta")  # computes nothing, so that the result cannot be fetched
    assert [trial.name for trial in trials] == list(TRIALS)
    assert all(trial.failure and "it raised NotImplementedError: " in trial.failure.sentences[0] for trial in trials)


@pytest.mark.usefixtures("nothing_forced")
@pytest.mark.parametrize(
    ("op", "trial"),
    [("gemm_4bit", "Linear4bit nf4 float32, forward"), ("int8_linear", "Linear8bitLt float16, forward")],
)
def test_check_finds_a_wrong_layer(op: str, trial: str) -> None:
    original = ops_registry.kernels_for(op, "cpu")[-1]

    def doubled(*args: object, **options: object) -> torch.Tensor:
        return 2 * original.function(*args, **options)

    kernel = ops_registry.Kernel(op=op, device="cpu", name="cpu/doubled", fn=doubled, priority=100)
    ops_registry.dispatch.register_kernels([kernel])
    try:
        assert [found.name for found in check_device("cpu") if found.failure] == [trial]
    finally:
        ops_registry.unregister_kernel(kernel)


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("dequantize_blockwise", "bnb_core::dequantize_blockwise"):
        assert cli.main(["explain", name]) == 0
        printed = capsys.readouterr().out
        assert ops_registry.OPS["dequantize_blockwise"].schema in printed
        assert "reference" in printed


def test_explain_names_near_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "quantise_4bit"]) == 2
    assert "did you mean quantize_4bit" in capsys.readouterr().err
    assert cli.main(["explain", "xyz"]) == 2
    assert "int8_linear" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["foo", "cpu:x"])
def test_explain_refuses_what_is_no_device(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "quantize_4bit", "--device", device]) == 2
    assert f"{device!r} is no device" in capsys.readouterr().err


def test_explain_of_a_device_that_is_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "quantize_4bit", "--device", "mps"]) == 0
    assert "on mps, best first" in capsys.readouterr().out


# -- quantize --------------------------------------------------------------------------------------------------------


def test_quantize(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["quantize", str(model), "--to", "nf4", "--double-quant", "--skip", r"layers\.1\.", "-o", str(out)]
    assert cli.main(arguments) == 0
    stored = load_file(out / "model.safetensors")
    assert stored[WEIGHT].dtype == torch.uint8
    assert stored[f"{WEIGHT}.absmax"].dtype == torch.uint8
    assert stored["model.layers.1.mlp.up_proj.weight"].dtype == torch.float32
    printed = capsys.readouterr()
    assert "1 weights to nf4 with double quantization, blocks of 64" in printed.out
    assert "1 --skip" in printed.out
    assert WEIGHT in printed.out
    assert json.loads((out / "quantization_report.json").read_text())["weights"][0]["name"] == WEIGHT


def test_quantize_draws_the_errors(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert cli.main(["quantize", str(model), "--to", "int8", "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "quantization_error.png").read_bytes().startswith(b"\x89PNG")


def test_a_title_is_no_formula(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / r"a$\frac$b"
    assert cli.main(["quantize", str(model), "--to", "int8", "-o", str(out)]) == 0
    assert (out / "quantization_error.png").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise")
def test_a_reader_that_leaves_early_misses_no_file(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    code = "import sys; from bnb_core.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "quantize", str(model), "--to", "nf4", "-o", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 1, errors
    assert "Traceback" not in errors
    assert (out / "quantization_error.png").exists()


def test_quantize_works_without_matplotlib(model: Path, tmp_path: Path) -> None:
    done = run(
        "quantize", model, "--to", "fp4", "-o", tmp_path / "out", before="import sys; sys.modules['matplotlib'] = None"
    )
    assert done.returncode == 0
    assert "No picture of the errors: matplotlib is not installed" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_wrong_input_is_one_sentence(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_bytes(b"nothing of the sort")
    done = run("quantize", model, "--to", "nf4", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("bnb-core: ")
    assert "is truncated or no safetensors file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "nf4", "-o", "/nowhere/out"], "does not exist"),
        (["--to", "int8", "--blocksize", "128", "-o", "out"], "int8 has one scale a row"),
        (["--to", "nf4", "--device", "abacus", "-o", "out"], "'abacus' is no device"),
        (["--to", "nf4", "--device", "cpu:x", "-o", "out"], "'cpu:x' is no device"),
        (["--to", "nf4", "--device", "meta", "-o", "out"], f"meta is not available; there is {HERE}"),
        (["--to", "nf4", "--device", "cpu:9", "-o", "out"], "device cpu:9 is not available; the count"),
    ],
)
def test_wrong_use_of_quantize(
    model: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["quantize", str(model), *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nothing"], ["quantize"], ["quantize", "m", "-o", "o", "--to", "nf5"]])
def test_wrong_arguments_are_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: bnb-core" in capsys.readouterr().err


def test_a_refusing_disk_is_one_sentence(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.partial").write_text("a file where the folder should be")
    assert cli.main(["quantize", str(model), "--to", "nf4", "-o", str(tmp_path / "out")]) == 2
    assert "out.partial" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_no_half_output_and_the_next_run_finishes(tmp_path: Path) -> None:
    source, out = save_model(tmp_path / "model", layers=16, rows=2048), tmp_path / "out"
    arguments = ["quantize", str(source), "--to", "nf4", "-o", str(out)]
    process = subprocess.Popen(
        # Last in line for the processor, so that it is still at work when this process sees the file.
        ["nice", "-n", "19", sys.executable, "-m", "bnb_core", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "BNB_CORE_FORCE": "reference"},  # native kernels are done before the signal comes
        # A shell's job in the background ignores the signal, and so do all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    partial = tmp_path / "out.partial" / "model.safetensors"
    deadline = time.monotonic() + 60
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not out.exists()
    assert cli.main(arguments) == 0
    assert load_file(out / "model.safetensors")[WEIGHT].shape == (2048 * 128 // 2, 1)
    assert not partial.exists()


# -- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2.5e6, "2.5 MB"), (7e12, "7.00 TB")]
)
def test_byte_count(count: float, text: str) -> None:
    assert byte_count(count) == text


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "info"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert cli.COMMANDS[command][1:] in " ".join(capsys.readouterr().out.split())
