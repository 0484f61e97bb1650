"""Writes docs/ops.md from the registry; with --check it only compares, for the test."""

from __future__ import annotations

import sys
from pathlib import Path

from bnb_core.ops_registry import OPS, Op
from bnb_core.ops_registry.kernels import show

TARGET = Path(__file__).parents[1] / "docs" / "ops.md"

HEAD = """# Operators

Made from the registry by `python ci/op_table.py`. All stand in the namespace `torch.ops.bnb_core`; an `.out` form takes
the tensors to write to as its last arguments and returns nothing. The tolerance is the ceiling for every kernel's
distance to the reference, relative to the largest result; without one every bit agrees.
"""


def tolerance(op: Op) -> str:
    bounds = [f"{show(dtype)} {bound:g}" for dtype, bound in op.tolerance.relative.items()]
    if op.tolerance.codes:
        bounds.append(f"codes one apart in {op.tolerance.codes:.1%}")
    return ", ".join(bounds) or "exact"


def section(op: Op) -> str:
    form = ", `.out`" if op.out else ""
    counts = f"{len(list(op.each_case('cpu', 'full')))} cases, {len(list(op.each_bad_case('cpu')))} refusals"
    return (
        f"## {op.name}{form}\n\n```\n{op.schema}\n```\n\n{op.doc}\n\n"
        f"Tolerance: {tolerance(op)}. Tested with {counts}.\n"
    )


def page() -> str:
    return "\n".join([HEAD, *(section(op) for op in OPS.values())])


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(None if TARGET.read_text() == page() else f"{TARGET} is stale: run python ci/op_table.py")
    TARGET.write_text(page())
