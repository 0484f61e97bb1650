"""The scaffold of a backend: what it writes imports, is found, and conforms."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from installed import install, python

from bnb_core import cli

pytestmark = pytest.mark.usefixtures("nothing_forced")

ROOT = Path(__file__).parents[1]
FLAVOURS = ("python", "native", "triton")
INTERPRETED = {"TRITON_INTERPRET": "1"}
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def program(name: str) -> str | None:
    """As setup.py finds it: on the path, or beside this Python."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if not (program(tool) or importlib.util.find_spec(tool))]
    return pytest.mark.skipif(bool(missing), reason=f"building needs {', '.join(missing)}")


def write(folder: Path, *arguments: str) -> Path:
    """A package for the CPU."""
    assert cli.main(["new-backend", "acme", "--device", "cpu", "--out-of-tree", str(folder), *arguments]) == 0
    return folder


def set_up(folder: Path) -> tuple[Path, ...]:
    """The package of a folder as installed; what goes on the path."""
    assert 'acme = "bnb_core_acme.backend"' in (folder / "pyproject.toml").read_text()
    return install(folder.parent / "site", "acme", "bnb_core_acme.backend"), folder


def conforms(folder: Path, path: tuple[Path, ...], **environment: str) -> None:
    """Its own tests pass, and the entry point is found."""
    done = python("-m", "pytest", "-q", folder / "tests", path=path, cwd=folder.parent, **environment)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout
    listed = python("-m", "bnb_core", path=path, cwd=folder.parent, **environment).stdout
    assert ["acme", "loaded", "2"] in [line.split()[:3] for line in listed.splitlines()]


def test_a_package_is_found_and_passes_its_own_tests(tmp_path: Path) -> None:
    folder = write(tmp_path / "acme")
    conforms(folder, set_up(folder))
    named = write(tmp_path / "named", "--python")
    for path in filter(Path.is_file, named.rglob("*")):
        assert path.read_bytes() == (folder / path.relative_to(named)).read_bytes()


@needs("setuptools", "pybind11", "pip")
def test_a_native_package_is_built_without_torch_and_passes_its_own_tests(tmp_path: Path) -> None:
    folder, site = write(tmp_path / "acme", "--native"), tmp_path / "site"
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--no-build-isolation", "--no-deps", "--no-cache-dir")
    # A torch that cannot be imported shows that the build asks for none.
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "torch.py").write_text("raise ImportError")
    done = python(*pip, "--target", site, folder, path=(tmp_path / "none",), CFLAGS="-O0")
    assert done.returncode == 0, done.stdout + done.stderr
    conforms(folder, (site,))


def test_a_native_package_that_was_not_built_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path / "acme", "--native")
    listed = python("-m", "bnb_core", path=set_up(folder), COLUMNS="200").stdout
    assert "acme unavailable its native module was not built for this Python" in " ".join(listed.split())


@needs_triton
def test_a_package_in_triton_passes_its_own_tests_in_the_interpreter(tmp_path: Path) -> None:
    folder = write(tmp_path / "acme", "--triton")
    conforms(folder, set_up(folder), **INTERPRETED)


@pytest.mark.parametrize("device", ["cpu", "cuda", "abacus"])
def test_a_package_in_triton_says_what_is_missing(tmp_path: Path, device: str) -> None:
    folder = tmp_path / "acme"
    assert cli.main(["new-backend", "acme", "--device", device, "--out-of-tree", str(folder), "--triton"]) == 0
    environment = {"COLUMNS": "200", "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    listed = python("-m", "bnb_core", path=set_up(folder), **environment).stdout
    missing = (
        "triton is not installed" if importlib.util.find_spec("triton") is None else f"triton has no {device} here"
    )
    assert f"acme unavailable {missing}" in " ".join(listed.split())


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_text_is_filled_in_and_every_package_has_its_ci(tmp_path: Path, flavour: str) -> None:
    folder = tmp_path / "acme"
    assert cli.main(["new-backend", "acme", "--out-of-tree", str(folder), f"--{flavour}"]) == 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        text = path.read_text()
        assert "$" not in text and text.endswith("\n") and max(map(len, text.splitlines())) <= 120, path
        if path.suffix == ".py":
            compile(text, str(path), "exec")
    steps = (folder / ".github" / "workflows" / "test.yml").read_text()
    assert "pip install -e . pytest" in steps and "python -m pytest" in steps and "bnb-core conformance" in steps
    assert ("ubuntu-latest" if flavour == "triton" else "[self-hosted, acme]") in steps


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_folder_in_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    (tmp_path / "backends" / "reference").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new-backend", "acme", f"--{flavour}"]) == 0
    table = (tmp_path / "backends" / "acme" / "__init__.py").read_text()
    assert 'fn=".kernels:dequantize_blockwise"' in table and '"acme"' in table
    compile(table, "table", "exec")
    assert (tmp_path / "backends" / "acme" / "CMakeLists.txt").exists() == (flavour == "native")


LOADED = """
import importlib, sys
import bnb_core, bnb_core.backends
from bnb_core.conformance import conform
from bnb_core.ops_registry import discovery
bnb_core.backends.__path__.append(sys.argv[1])
module = "bnb_core.backends.acme"
record = discovery.load("acme", module, lambda: importlib.import_module(module))
assert record.status == "loaded", record.reason
trials = [t for kernel in record.kernels for t in conform("cpu", [kernel.op]) if t.kernel == kernel.name]
assert len(trials) == 2 and all(trial.passed and not trial.failures for trial in trials), trials
"""


@needs("cmake", "ninja", "pybind11")
def test_a_native_folder_in_the_tree_is_built_by_its_cmake_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pybind11

    backends = tmp_path / "backends"
    (backends / "reference").mkdir(parents=True)
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new-backend", "acme", "--device", "cpu", "--native"]) == 0
    options = (
        *("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O0"),
        f"-DCMAKE_MAKE_PROGRAM={program('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DBNB_CORE_OUTPUT_DIR={backends}",
    )
    for arguments in (["-S", ".", "-B", "build", "-G", "Ninja", *options], ["--build", "build"]):
        done = subprocess.run([program("cmake"), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    done = python("-c", LOADED, backends, path=())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["Acme"], "the name is 'Acme', expected small letters, digits and underscores"),
        (["acme"], "there is no backends/reference here"),
        (["acme", "--native"], "there is no backends/reference here"),
        (["acme", "--device", "cuda:0"], "the device is 'cuda:0', expected a type as `cuda`, without an index"),
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
    assert cli.main(["new-backend", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_two_flavours_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["new-backend", "acme", "--native", "--triton"])
    assert end.value.code == 2
    assert "argument --triton: not allowed with argument --native" in capsys.readouterr().err


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str], flavour: str) -> None:
    arguments = ["new-backend", "acme", "--out-of-tree", str(tmp_path), f"--{flavour}"]
    assert cli.main(arguments) == 0
    kept = tmp_path / "README.md"
    kept.write_text("mine")
    assert cli.main(arguments) == 2
    assert "is there already" in capsys.readouterr().err and kept.read_text() == "mine"
