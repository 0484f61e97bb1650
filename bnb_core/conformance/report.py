"""The outcome of a conformance run for machines and for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from .trial import KernelTrial

__all__ = ["as_json", "as_markdown"]


def as_json(device: str, trials: Sequence[KernelTrial]) -> str:
    """All of it."""
    return json.dumps({"device": device, "trials": [dataclasses.asdict(trial) for trial in trials]}, indent=2)


def as_markdown(device: str, trials: Sequence[KernelTrial]) -> str:
    """A table, and below it the failures, each with a program that shows it again."""
    lines = [f"# Conformance of {device}", "", "| operator | kernel | kind | passed | refused | failed |"]
    lines += ["|---|---|---|---|---|---|"]
    for t in trials:
        numbers = "| |" if t.kind == "reference" else f"{t.passed} | {t.refused} | {len(t.failures)}"
        lines.append(f"| `{t.op}` | `{t.kernel}` | {t.kind} | {numbers} |")
    for trial in trials:
        for failure in trial.failures:
            lines += ["", f"## {trial.op}, {trial.kernel}: {failure.case}", "", failure.sentence, ""]
            lines += ["```python", failure.program, "```"]
    return "\n".join(lines) + "\n"
