"""The findings of a run for machines and for people; `page.py` and `picture.py` make what has colours."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from .findings import Failure, Findings, KernelTrial, Tally
from .run import LEVELS

__all__ = ["FLOATS", "as_json", "as_markdown", "claims", "failures", "share_of_tolerance", "times", "total"]

FLOATS = ("float32", "float16", "bfloat16")


def as_json(findings: Findings) -> str:
    """All of it; a distance without bound is null, for JSON has no infinity."""
    return json.dumps(_finite(dataclasses.asdict(findings)), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def claims(findings: Findings) -> Iterator[tuple[str, bool, str]]:
    """(level, whether it holds, why) for each level of which all operators and the scenarios were tried."""
    first: dict[str, KernelTrial] = {}
    failing = {trial.op for trial in findings.kernels if trial.failures}
    for trial in findings.kernels:
        first.setdefault(trial.op, trial)
    for level, ops in LEVELS.items():
        scenarios = [trial for trial in findings.scenarios if level in trial.levels]
        if not scenarios or not set(ops) <= first.keys():
            continue
        wrong = [op for op in ops if op in failing] + [trial.name for trial in scenarios if trial.failure]
        kinds = [first[op].kind for op in ops]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("native", "composed", "reference"))
        yield level, not wrong, f"fails in {'; '.join(wrong)}" if wrong else f"operators: {counts}"


def failures(findings: Findings) -> Iterator[tuple[str, Failure]]:
    """Each failure under what it is of."""
    for trial in findings.kernels:
        yield from ((f"{trial.op}, {trial.kernel}", failure) for failure in trial.failures)
    yield from ((findings.device, trial.failure) for trial in findings.scenarios if trial.failure is not None)


def share_of_tolerance(trial: KernelTrial) -> str:
    """The largest distance to the reference, in words."""
    return "same bits" if trial.share == 0 else f"{100 * trial.share:.0f} %" if trial.share < 1e6 else "beyond"


def times(trial: KernelTrial) -> tuple[str, str]:
    """How many times as fast as the reference, and the share of a copy's bandwidth; empty where it was not timed."""
    if trial.speed is None:
        return "", ""
    speed = trial.speed
    return f"{speed.reference / speed.seconds:.3g}×", f"{100 * speed.copy / speed.seconds:.2g} %"


def total(tallies: Iterable[Tally]) -> Tally:
    """The counts of several together."""
    found = Tally()
    for tally in tallies:
        found.passed, found.refused = found.passed + tally.passed, found.refused + tally.refused
        found.failed += tally.failed
    return found


def as_markdown(findings: Findings) -> str:
    """Tables, and below them the failures, each with a program that shows it again."""
    lines = [f"# Conformance of {findings.device}", ""]
    lines += [f"- {name}: {value}" for name, value in findings.machine.items()]
    lines += [f"- {level}: {'holds' if holds else 'DOES NOT HOLD'}, {why}" for level, holds, why in claims(findings)]
    lines += [
        "",
        "| operator | kernel | kind | passed | refused | failed | of the tolerance | × reference | of a copy |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for trial in findings.kernels:
        cells = (trial.passed, trial.refused, len(trial.failures), share_of_tolerance(trial), *times(trial))
        lines.append(f"| `{trial.op}` | `{trial.kernel}` | {trial.kind} | {' | '.join(map(str, cells))} |")
    if findings.scenarios:
        lines += ["", "| layers and optimizers | | kernels |", "|---|---|---|"]
    for scenario in findings.scenarios:
        verdict = "FAILED" if scenario.failure else "ok"
        lines.append(f"| {scenario.name} | {verdict} | {'; '.join(scenario.kernels)} |")
    for what, failure in failures(findings):
        lines += ["", f"## {what}: {failure.aspect}, {failure.case}", "", *failure.sentences, ""]
        lines += ["```python", failure.program, "```"]
    return "\n".join(lines) + "\n"
