"""Writes docs/nvidia-kernels.md: what the kernels in CUDA C++ were tried on without a GPU, and what they use.

    python ci/cuda_page.py [--check]

Builds them as fibers and tries all operators on the CPU, then compiles them for each GPU; that takes some minutes and
wants nvcc, ninja and CMake. --check: only compiles them, and compares what they use with what the page says, where it
was written with the same nvcc.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11
from portable_page import tried

from bnb_core import ops_registry
from bnb_core.backends import cuda
from bnb_core.backends.cuda.families import Families
from bnb_core.cli import main as command_line

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "nvidia-kernels.md"

HEAD = """# Kernels for NVIDIA GPUs

The kernels in CUDA C++ (`backends/cuda`) have every operator. **No GPU has run them yet.** This is what they were tried
on without one; `python ci/cuda_page.py` writes it.

## As fibers

The same sources, compiled for a CPU, where the threads of a block are [fibers](../tests/fibers/fibers.h): shuffles,
barriers and shared memory are there, and products of tensor cores are computed element by element. Each kernel was
compared with the reference as any other is. "Share" is the largest difference found, in parts of what the operator
allows ([ops.md](ops.md)); at 0 every bit is the same.

| operator | fp32 | fp16 | bf16 | all attempts | refused | share |
|---|---|---|---|---|---|---|
"""

COMPILED = """
## Compiled

Of each kernel, for all its types: how many there are, the shared memory of a block, and the registers of a thread by
architecture. "s" is a stack, in bytes a thread; none spills a register unless it says so.

"""

COMPILING = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
# Kernels of one name differ by an element's type, and by what else is part of the name.
TYPES = re.compile(r"\b(float|bnb_core::float16|bnb_core::bfloat16)(, )?")


def built(folder: Path, target: str, *options: str) -> str:
    """What building the target prints."""
    python = (f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    common = (
        "-G",
        "Ninja",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBNB_CORE_LEVELS=scalar",
        f"-DBNB_CORE_OUTPUT_DIR={folder}",
    )
    run = {"check": True, "capture_output": True, "text": True}
    subprocess.run(("cmake", "-S", ROOT, "-B", folder / "build", *common, *python, *options), **run)
    return str(subprocess.run(("cmake", "--build", folder / "build", "--target", target), **run).stdout)


def fibers(folder: Path) -> dict[str, Any]:
    """The report of a conformance run of all operators."""
    built(folder, "cuda_fibers", "-DBNB_CORE_FIBERS=ON")
    sys.path.insert(0, str(folder))
    module = ModuleType("cuda_as_fibers")
    module.native = Families(importlib.import_module("cuda_fibers"))  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    ops_registry.register_kernels(cuda.rows(module.__name__, "cpu", "cpu/fibers"))
    report = folder / "report.json"
    status = command_line(
        ["conformance", "--device", "cpu", "--kernel", "cpu/fibers", "--no-times", "--report", str(report)]
    )
    assert status == 0, "not all kernels conform"
    return dict(json.loads(report.read_text()))


def compiled(folder: Path) -> tuple[list[str], int]:
    """A table of what each kernel uses, and the bytes of the module."""
    printed = built(folder, "cuda_native", "-DBNB_CORE_CUDA=ON", "-DCMAKE_CUDA_FLAGS=--resource-usage")
    names = COMPILING.findall(printed)
    readable = subprocess.run(
        ("c++filt",), input="\n".join(name for name, _ in names), check=True, capture_output=True, text=True
    ).stdout.splitlines()
    stacks, used = STACK.findall(printed), USED.findall(printed)
    assert 0 < len(names) == len(stacks) == len(used)
    found: dict[str, dict[str, list[tuple[int, ...]]]] = defaultdict(lambda: defaultdict(list))
    for (mangled, architecture), name, stack, use in zip(names, readable, stacks, used, strict=True):
        found[_short(mangled, name)][architecture].append(tuple(int(number or 0) for number in (*use, *stack)))
    architectures = sorted({architecture for _, architecture in names}, key=int)
    lines = ["| kernel | | shared | " + " | ".join(f"sm_{architecture}" for architecture in architectures) + " |"]
    lines += ["|" + "---|" * (3 + len(architectures))]
    for kernel, by_architecture in sorted(found.items()):
        each = list(by_architecture.values())
        shared = _range(use[1] for uses in each for use in uses)
        cells = " | ".join(_cell(by_architecture[architecture]) for architecture in architectures)
        lines.append(f"| `{kernel}` | {len(each[0])} | {shared} | {cells} |")
    (module,) = (folder / "cuda").glob("_native*")
    return lines, module.stat().st_size


def _short(mangled: str, name: str) -> str:
    """The file and the name, without types and parameters."""
    (file,) = re.findall(r"_\d+_(\w+?)_cu_", mangled)
    name = name.partition("::(anonymous")[2].partition("::")[2] or name.rpartition("::")[2]
    name = TYPES.sub("", name.partition(">(")[0].partition("(")[0].removesuffix(">")).replace("bnb_core::", "")
    head, _, rest = name.partition("<")
    return f"{file} {head}" + (f"<{rest}>" if rest else "")


def _range(numbers: Any) -> str:
    ordered = sorted(set(numbers))
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]}-{ordered[-1]}"


def _cell(uses: list[tuple[int, ...]]) -> str:
    registers, _, stack, stores, loads = zip(*uses, strict=True)
    words = [_range(registers)]
    words += [f"s {max(stack)}"] * any(stack) + [f"**spills {max(stores + loads)}**"] * any(stores + loads)
    return ", ".join(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the page, and write nothing")
    check = parser.parse_args().check
    nvcc = subprocess.run(("nvcc", "--version"), check=True, capture_output=True, text=True).stdout
    (version,) = re.findall(r"release (\d+\.\d+)", nvcc)
    with tempfile.TemporaryDirectory() as folder:
        table, size = compiled(Path(folder) / "gpus")
        if not check:
            report = fibers(Path(folder) / "cpu")
            machine = f"\nThey ran on: {', '.join(report['machine'].values())}.\n"
            module = f"\nBy nvcc {version}, compressed, all in one module of {size / 1e6:.1f} MB.\n"
            page = HEAD + "\n".join(tried(report)) + "\n" + machine + COMPILED + "\n".join(table) + "\n" + module
            PAGE.write_text(page, encoding="utf-8")
            return 0
    page = PAGE.read_text(encoding="utf-8")
    if f"By nvcc {version}," not in page:
        print(f"the page was not written with nvcc {version}: compiled, not compared")
        return 0
    wrong = [line for line in table if line not in page.splitlines()]
    print("\n".join(["not in the page:", *wrong]) if wrong else "as the page says")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
