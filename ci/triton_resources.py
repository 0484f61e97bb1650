"""Compiles the Triton kernels for GPUs that need not be here, and lists what each uses: tests/triton_resources.txt.

    python ci/triton_resources.py [--check] [TARGET...]

Each operator is called with one bf16 case of the registry; what it would launch is compiled. A line is a kernel with
the values it is specialized on, a target, its registers, bytes of shared memory, and bytes of spills.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from bnb_core.backends import triton as library
from bnb_core.conformance.attempts import dtype_of
from bnb_core.ops_registry import OPS
from bnb_core.ops_registry.cases import fresh

RECORD = Path(__file__).parents[1] / "tests" / "triton_resources.txt"
TARGETS = {f"sm_{level}": GPUTarget("cuda", level, 32) for level in (80, 90, 100)} | {
    name: GPUTarget("hip", name, 64) for name in ("gfx90a", "gfx942")
}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NAMES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}

Launch = tuple[JITFunction, tuple[tuple[str, str], ...], tuple[tuple[str, Any], ...]]


def launches(op: str) -> list[Launch]:
    """What an operator launches for a case in bf16: kernels with their signatures and constants."""
    found: dict[Launch, None] = {}

    def note(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        values = dict(zip(self.arg_names, args, strict=False)) | options
        signature, constants = [], []
        for parameter in self.params:
            value = values[parameter.name]
            fixed = parameter.is_constexpr or value is None
            signature.append((parameter.name, "constexpr" if fixed else _type(value)))
            constants += [(parameter.name, value)] if fixed else []
        found[(self, tuple(signature), tuple(constants))] = None

    row = next(row for row in library.rows("cpu") if row.op == op)
    original, JITFunction.run = JITFunction.run, note
    try:
        cases = [case for case in OPS[op].each_case("cpu") if row.refuses(OPS[op].complete(case.args)) is None]
        of_bf16 = [case for case in cases if dtype_of(OPS[op], case.args) == "bfloat16"] or cases
        # Nothing is computed, so what reads the results may fail.
        with suppress(RuntimeError, ValueError, IndexError):
            row.function(*fresh(OPS[op].complete(of_bf16[0].args)))
    finally:
        JITFunction.run = original
    return list(found)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return NAMES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def resources(launch: Launch, target: GPUTarget) -> str:
    """Registers, shared memory and spills, in words."""
    function, signature, constants = launch
    kernel = triton.compile(ASTSource(function, dict(signature), dict(constants)), target=target)
    shared = kernel.metadata.shared
    if target.backend == "hip":
        vgprs, spilled = (
            _number(rf"\.{key}:\s+(\d+)", kernel.asm["amdgcn"]) for key in ("vgpr_count", "vgpr_spill_count")
        )
        return f"registers {vgprs} shared {shared} spills {4 * spilled}"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = _number(r"REG:(\d+)", printed), _number(r"STACK:(\d+)", printed)
    return f"registers {registers} shared {shared} spills {stack}"


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, text
    return int(found[1])


def lines(targets: list[str]) -> Iterator[str]:
    yield f"triton {triton.__version__}"
    seen = set()
    for row in library.rows("cpu"):
        for launch in launches(row.op):
            if launch in seen:
                continue
            seen.add(launch)
            function, _, constants = launch
            values = " ".join(f"{name}={value}" for name, value in constants)
            name = f"{function.fn.__module__.rpartition('.')[2]}.{function.fn.__name__.strip('_')}"
            for target in targets:
                yield f"{name} {values} {target}: {resources(launch, TARGETS[target])}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the record, and write nothing")
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    found = list(lines(options.targets or list(TARGETS)))
    if not options.check:
        RECORD.write_text("\n".join(found) + "\n")
        return 0
    recorded = RECORD.read_text().splitlines()
    if recorded[0] != found[0]:
        print(f"recorded with {recorded[0]}, found {found[0]}: compiled, not compared")
        return 0
    wrong = [line for line in found if line not in recorded]
    print("\n".join(f"not recorded: {line}" for line in wrong) or "as recorded")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
