"""The results as tables."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bnb_core.cli.console import console, facts, table

from .measure import Measured, Outcome
from .work import OURS, Family

__all__ = ["duration", "everything", "show", "text", "times", "works"]

WIDTH_OF_FILES = 160
COLOURS = {"met": "green", "missed": "red", "unknown": "dim"}


def text(*tables: RenderableType) -> str:
    """As it stands in a file: wide, without colours and without the spaces that fill lines."""
    out = Console(file=io.StringIO(), width=WIDTH_OF_FILES, highlight=False, color_system=None, record=True)
    out.print(*tables, sep="\n")
    return "\n".join(line.rstrip() for line in out.export_text().split("\n"))


def show(*tables: RenderableType) -> None:
    """Prints to the terminal, or as text to what stdout leads to."""
    if sys.stdout.isatty():
        console().print(*tables, sep="\n")
    else:
        sys.stdout.write(text(*tables))


def works(family: Family) -> Table:
    """What a family measures, with its targets."""
    made = table(family.title)
    for column in ("work", "contestants", "targets"):
        made.add_column(column, overflow="fold")
    for work in family.works:
        names = ", ".join(contestant.name for contestant in work.contestants[1:])
        made.add_row(work.name, names, ", ".join(target.text for target in work.targets))
    return made


def everything(head: Mapping[str, Any], results: Sequence[tuple[Family, list[Outcome]]]) -> Iterator[RenderableType]:
    """The machine, its limits, a table for each family, and the targets."""
    yield _machine(head)
    if (busy := _busy(head["machine"])) is not None:
        yield Text(busy, "yellow")
    yield _limits(head)
    for family, outcomes in results:
        yield _family(family, outcomes, head["settings"]["best"])
    yield _verdicts(results)
    counts = Counter(verdict.word for _, outcomes in results for outcome in outcomes for verdict in outcome.verdicts)
    sentence = ", ".join(f"{counts[word]} {word}" for word in COLOURS if counts[word])
    scale = head["settings"]["scale"]
    remark = "" if scale == 1 else f" (they are for full sizes, not for {scale:g} of them)"
    yield Text(f"targets: {sentence or 'none'}{remark}")


def _machine(head: Mapping[str, Any]) -> Table:
    made = facts()
    for name, value in head["machine"].items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{package} {version or 'not installed'}" for package, version in value.items())
        made.add_row(name, Text(f"{value:.2f}" if isinstance(value, float) else str(value)))
    settings = head["settings"]
    if settings["force"]:
        made.add_row("forced", Text(", ".join(settings["force"]), "yellow"))
    return made


def _busy(machine: Mapping[str, Any]) -> str | None:
    load = machine["load before"]
    if load is None or load < 0.5:
        return None
    return f"The machine was busy (load {load:.1f}): who waits for a second thread waits for its turn at a core too."


def _limits(head: Mapping[str, Any]) -> Table:
    made = table("Limits of the machine, before and after the run (a copy counts what it reads and what it writes)")
    made.add_column("limit")
    for column in ("before", "best", "after", "best"):
        made.add_column(column, justify="right")
    for limit in head["limits"]:
        rates = (limit[when][which] for when in ("before", "after") for which in ("median", "best"))
        made.add_row(limit["before"]["name"], *(f"{rate / 1e9:.1f} G{limit['before']['unit']}" for rate in rates))
    return made


def _family(family: Family, outcomes: Sequence[Outcome], best: bool) -> Table:
    others = dict.fromkeys(entry.name for outcome in outcomes for entry in outcome.contestants[1:])
    absent = {name: reason for name in others if (reason := _absent_everywhere(name, outcomes))}
    made = table(family.title)
    made.add_column("work", no_wrap=True)
    made.add_column("kernel", no_wrap=True)
    made.add_column(OURS, justify="right", no_wrap=True)
    for name in others:
        if name not in absent:
            words = name.split()
            made.add_column("\n".join(words), justify="right", overflow="fold", min_width=max(map(len, words)))
    prefix = _prefix([outcome.work for outcome in outcomes])
    notes = [f"{name}: {reason}" for name, reason in absent.items()]
    for outcome in outcomes:
        entries = {entry.name: entry for entry in outcome.contestants}
        cells = [_cell(entries.get(name), best) for name in others if name not in absent]
        kernels = ", ".join(dict.fromkeys(outcome.kernels.values()))
        made.add_row(outcome.work[len(prefix) :], kernels, duration(outcome.ours.by(best)[0]), *cells)
        notes += [
            f"{outcome.work}, {entry.name}: {entry.absent}"
            for entry in outcome.contestants
            if entry.absent and entry.name not in absent
        ]
    sentence = f"{'Best' if best else 'Median'} time of a call, and how many of ours fit into it."
    made.caption = "\n".join([sentence, *notes])
    made.caption_justify = "left"
    return made


def _absent_everywhere(name: str, outcomes: Sequence[Outcome]) -> str | None:
    reasons = {entry.absent for outcome in outcomes for entry in outcome.contestants if entry.name == name}
    return reasons.pop() if len(reasons) == 1 else None


def _prefix(names: Sequence[str]) -> str:
    """What stands before the first slash of all names."""
    first = {name.partition("/")[0] for name in names}
    return f"{first.pop()}/" if len(first) == 1 else ""


def _cell(entry: Measured | None, best: bool) -> Text:
    if entry is None:
        return Text("")
    seconds, ratio = entry.by(best)
    if ratio is None:
        return Text((entry.absent or "").partition(":")[0], "dim")
    colour = "dim" if entry.limit else "green" if ratio >= 1 else "red"
    return Text.assemble(duration(seconds), " ", (times(ratio), colour))


def times(ratio: float) -> str:
    """A ratio with as many digits as say something."""
    digits = 0 if ratio >= 10 else 2 if ratio >= 0.1 else 3
    return f"{ratio:.{digits}f}×"


def duration(seconds: float | None) -> str:
    """Three digits and a unit."""
    if seconds is None:
        return ""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            value = seconds * factor
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    return ""


def _verdicts(results: Sequence[tuple[Family, list[Outcome]]]) -> Table:
    made = table("Targets: how many times as fast as it has to be")
    made.add_column("work", no_wrap=True)
    made.add_column("target")
    made.add_column("margin", justify="right")
    made.add_column("")
    for _, outcomes in results:
        for outcome in outcomes:
            for verdict in outcome.verdicts:
                margin = "" if verdict.margin is None else times(verdict.margin)
                made.add_row(outcome.work, verdict.text, margin, Text(verdict.word, COLOURS[verdict.word]))
    return made
