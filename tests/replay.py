"""The registry's cases with the reference's results in a file, and their replay on one level of the CPU kernels.

    python tests/replay.py record FILE
    python tests/replay.py run FILE cpu/avx2 [SIDE...]

A replay runs neither pytest nor the reference, so it is short enough for an emulator of another CPU. Every tensor that
a kernel is given, and every one that it allocates, ends at a page that cannot be touched, in a second round begins at
one. Before each call its name is printed: where the process dies, the last line says in what.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from guarded import Fence, FencedAllocations, Side

from bnb_core.ops_registry import OPS, Kernel, differences, force, kernels_for
from bnb_core.ops_registry.cases import Level, fresh

SIDES: tuple[Side, ...] = ("end", "start")
# What one process of an emulator can take: larger cases are left to the tests that run on the machine itself.
MOST_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Replayed:
    """A recorded call: the arguments, and what the reference returned and left in the mutated ones."""

    op: str
    case: str
    args: tuple[Any, ...]
    expected: list[Any]


def elements(values: Any) -> int:
    if isinstance(values, torch.Tensor):
        return values.numel()
    return sum(map(elements, values)) if isinstance(values, (list, tuple)) else 0


def record(file: Path, level: Level = "quick", each: int | None = None) -> None:
    """Writes every case of the operators that have a native kernel, or `each` of each, evenly spaced."""
    found = []
    for op in OPS.values():
        rows = [kernel.name for kernel in kernels_for(op.name, "cpu") if kernel.is_native]
        cases = list(op.each_case("cpu", level)) if rows else []
        for case in cases[:: max(1, len(cases) // (each or len(cases) or 1))]:
            args = op.complete(case.args)
            if elements(args) > MOST_ELEMENTS:
                continue
            copies = fresh(args)
            with force("reference"):
                returned = getattr(torch.ops.bnb_core, op.name).default(*copies)
            found.append((op.name, case.name, args, op.outcome(returned, copies)))
    torch.save(found, file)


def each_call(file: Path, name: str) -> Iterator[tuple[Kernel, Replayed]]:
    """The recorded calls that the kernel of that name takes."""
    rows = {op: kernel for op in OPS for kernel in kernels_for(op, "cpu") if kernel.name == name}
    for call in torch.load(file, weights_only=True):
        replayed = Replayed(*call)
        kernel = rows.get(replayed.op)
        if kernel is None or kernel.outside_limits(replayed.args):
            continue
        if kernel.refusal is None or kernel.refusal(*replayed.args) is None:
            yield kernel, replayed


def reasons(name: str) -> set[str]:
    """Why the kernels of that name never run here."""
    return {kernel.unavailable or "" for op in OPS for kernel in kernels_for(op, "cpu") if kernel.name == name}


def replay(file: Path, name: str, sides: tuple[Side, ...]) -> int:
    """Runs what a kernel of that name takes; returns how many calls differ from the reference."""
    wrong, ops, calls = 0, set(), 0
    for kernel, call in each_call(file, name):
        op = OPS[call.op]
        for side in sides:
            print(f"{call.op}: {call.case}, at the {side} of its memory", flush=True)
            with Fence(side) as fence:
                args = fence.copy(call.args)
                with FencedAllocations(fence):
                    returned = kernel.function(*args)
                found = differences(op.outcome(returned, args), call.expected, kernel.tolerance or op.tolerance)
                del args, returned
            if found:
                print(f"DIFFERS {'; '.join(found)}", flush=True)
            wrong, calls = wrong + bool(found), calls + 1
        ops.add(call.op)
    print(f"{name}: {calls} calls of {len(ops)} operators, {wrong} wrong")
    if not calls:
        print(f"no kernel of that name ran: {'; '.join(sorted(reasons(name))) or 'there is none'}")
    return wrong if calls else 1


if __name__ == "__main__":
    action, path, *rest = sys.argv[1:]
    if action == "record":
        record(Path(path))
    else:
        kernel, *sides = rest
        sys.exit(min(1, replay(Path(path), kernel, tuple(sides) or SIDES)))  # type: ignore[arg-type]
