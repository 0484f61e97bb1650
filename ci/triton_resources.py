"""Compiles the Triton kernels for GPUs that need not be here, and lists what each uses: tests/triton_resources.txt.

    python ci/triton_resources.py [--check] [TARGET...]

Each operator is called with arguments of the size that they have in a model, in bf16. What it launches is not run, but
compiled as at a launch: for pointers and sizes that 16 divides, with its options. A line is a kernel with the values
that are constants of its code and the options of its launch, a target, its registers, bytes of shared memory, bytes of
spills, and how many of its instructions access global memory, which are more where they are not vectorized.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from torch.utils._pytree import tree_map
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bnb_core.backends import triton as library
from bnb_core.conformance.speed import Sizes, arguments
from bnb_core.ops_registry import OPS

RECORD = Path(__file__).parents[1] / "tests" / "triton_resources.txt"
TARGETS = {f"sm_{level}": GPUTarget("cuda", level, 32) for level in (80, 90, 100, 120)} | {
    name: GPUTarget("hip", name, 64) for name in ("gfx90a", "gfx942", "gfx950")
}
RUN = JITFunction.run
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

# What decides over tiles, in turns: a number, or of how many rows a tensor is.
VARIED: dict[str, dict[str, tuple[int, ...]]] = {
    "quantize_blockwise": {"blocksize": (64, 4096)},
    "quantize_4bit": {"blocksize": (64, 4096)},
    "gemm_4bit": {"A": (1, 16, 64)},
    "grouped_gemm_4bit": {"A": (16, 512)},
    "int8_mm": {"A": (1, 256)},
    "int8_scaled_mm": {"A": (1, 256)},
    "int8_linear": {"A": (1, 256)},
}
OPTIMIZED = ("g", "p", "grads", "params")  # in bf16, as they are where a model is


@dataclass(frozen=True)
class Absent:
    """The driver of a GPU that is not here: as much of one as Triton asks before it compiles."""

    target: GPUTarget

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:
        """By which Triton keeps apart what it has compiled."""
        return self.target

    def get_current_stream(self, device: GPUTarget) -> int:
        return 0


def calls(op: str) -> Iterator[tuple[Any, ...]]:
    """The arguments that an operator is called with."""
    args = dict(zip(OPS[op].parameters, arguments(op, Sizes("cpu", "quick", seed=0)), strict=True))
    args |= {name: tree_map(torch.Tensor.bfloat16, args[name]) for name in OPTIMIZED if name in args}
    if op not in VARIED:
        yield tuple(args.values())
    for name, values in VARIED.get(op, {}).items():
        for value in values:
            old = args[name]
            new = old.new_zeros(value, *old.shape[1:]) if isinstance(old, torch.Tensor) else value
            yield tuple((args | {name: new}).values())


def family(name: str, target: str) -> dict[str, str]:
    """What the kernels of a family of operators use on a target. The process then launches nothing more."""
    torch.set_num_threads(1)
    driver.set_active(Absent(TARGETS[target]))
    found: dict[str, str] = {}

    def compiled(self: JITFunction, *args: Any, grid: Any, warmup: bool, **given: Any) -> None:
        kernel = RUN(self, *args, grid=grid, warmup=True, **given)
        values = dict(zip(self.arg_names, args, strict=False)) | given
        fixed = [name for name in self.arg_names if kernel.src.signature.get(name, "constexpr") == "constexpr"]
        options = [name for name in given if name not in self.arg_names]
        words = [f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__.strip('_')}"]
        words += [f"{name}={values[name]}" for name in (*fixed, *options)]
        found.setdefault(" ".join(words), resources(kernel))

    JITFunction.run = compiled
    rows = {row.op: row for row in library.rows("cpu")}
    for op in library.OPS[name]:
        for args in calls(op):
            rows[op].function(*args)
    return found


def resources(kernel: Any) -> str:
    """Registers, shared memory, spills and accesses, in words."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        registers, spills = _number(r"\.vgpr_count:\s+(\d+)", text), 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", text)
        accesses = len(re.findall(r"^\s+(?:buffer|flat|global)_(?:load|store)", text, re.MULTILINE))
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            command = [CUOBJDUMP, "--dump-resource-usage", file.name]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, spills = _number(r"REG:(\d+)", printed), _number(r"STACK:(\d+)", printed)
        accesses = len(re.findall(r"\b(?:ld|st)\.global|\bcp\.async\S*\.shared\.global", kernel.asm["ptx"]))
    return f"registers {registers} shared {kernel.metadata.shared} spills {spills} accesses {accesses}"


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, text
    return int(found[1])


def lines(targets: list[str]) -> Iterator[str]:
    """The record of some targets, kernel by kernel. Families are compiled in as many processes as there are cores."""
    yield f"triton {triton.__version__}"
    work = list(product(library.OPS, targets))
    work.sort(key=lambda unit: -len(library.OPS[unit[0]]))
    fork = multiprocessing.get_context("fork")  # what is imported is shared
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=fork) as pool:
        found = dict(zip(work, pool.map(family, *zip(*work, strict=True)), strict=True))
    for name in library.OPS:
        for kernel in dict.fromkeys(kernel for target in targets for kernel in found[name, target]):
            for target in targets:
                if kernel in found[name, target]:
                    yield f"{kernel} {target}: {found[name, target][kernel]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the record, and write nothing")
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    found = list(lines(targets))
    if not options.check:
        RECORD.write_text("\n".join(found) + "\n")
        return 0
    recorded = RECORD.read_text().splitlines()
    if recorded[0] != found[0]:
        print(f"recorded with {recorded[0]}, found {found[0]}: compiled, not compared")
        return 0
    recorded = [line for line in recorded if line == found[0] or line.partition(": ")[0].rpartition(" ")[2] in targets]
    wrong = [f"not recorded: {line}" for line in found if line not in recorded]
    wrong += [f"recorded, not found: {line}" for line in recorded if line not in found]
    print("\n".join(wrong) or "as recorded")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
