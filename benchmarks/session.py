"""One run of the benchmark, from the chosen works to the files."""

from __future__ import annotations

import gc
import json
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

import bnb_core
from bnb_core.cli.console import console

from . import report
from .limits import measure_limits
from .machine import facts_of_run, load
from .measure import Outcome, measure
from .timing import Pace
from .work import Family

__all__ = ["Settings", "UsageError", "list_works", "run"]

FORMAT = 1  # of results.json


class UsageError(Exception):
    """Ends the command with a sentence."""


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    scale: float
    seconds: float
    threads: int | None
    force: tuple[str, ...]
    kernels: tuple[str, ...]
    peers: tuple[str, ...]
    best: bool
    output: Path


def list_works(families: Sequence[Family]) -> None:
    """Prints what there is to measure."""
    report.show(*map(report.works, families))


def run(families: Sequence[Family], settings: Settings) -> Path:
    """Measures and reports; returns the folder with the files. Raises UsageError for kernels that do not exist."""
    try:
        for names in (settings.force, settings.kernels):
            bnb_core.force(*names)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if settings.threads:
        torch.set_num_threads(settings.threads)
    # What peers say in each call would be timed with it.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")

    started, load_before = time.strftime("%Y-%m-%d %H:%M:%S"), load()
    forced = bnb_core.force(*settings.force) if settings.force else nullcontext()
    pace = Pace(seconds=settings.seconds, sample=min(Pace.sample, settings.seconds / 5))
    if settings.best:  # there is no telling from the times so far that no better one would come
        pace = replace(pace, rounds=(pace.rounds[0], 4 * pace.rounds[1]), precision=0.0)
    results: list[tuple[Family, list[Outcome]]] = []
    gc.freeze()  # so that collecting between works does not go through all of torch
    with torch.no_grad(), forced, _progress() as progress:
        limits = [measure_limits(settings.scale)]
        task = progress.add_task("", total=sum(len(family.works) for family in families))
        for family in families:
            outcomes = []
            for work in family.works:
                progress.update(task, description=work.name)
                outcomes.append(measure(work, pace, settings.peers, settings.kernels, settings.best))
                progress.advance(task)
            results.append((family, outcomes))
        limits.append(measure_limits(settings.scale))

    head: dict[str, Any] = {
        "format": FORMAT,
        "started": started,
        "settings": {**asdict(settings), "output": settings.output.name},
        "machine": facts_of_run() | {"load before": load_before, "load after": load()},
        "limits": [{"before": asdict(before), "after": asdict(after)} for before, after in zip(*limits, strict=True)],
    }
    settings.output.mkdir(parents=True, exist_ok=True)
    body = [{"family": family.title, "works": [o.as_json() for o in outcomes]} for family, outcomes in results]
    (settings.output / "results.json").write_text(json.dumps(head | {"families": body}, indent=1) + "\n")
    (settings.output / "results.txt").write_text(report.text(*report.everything(head, results)))
    report.show(*report.everything(head, results), *_draw(head, results, settings.output / "results.png"))
    return settings.output


def _draw(head: dict[str, Any], results: Sequence[tuple[Family, list[Outcome]]], file: Path) -> Iterator[Text]:
    try:
        from .picture import draw
    except ImportError as error:
        yield Text(f"no picture: {error}; `pip install -e .[bench]` brings what it needs")
    else:
        draw(head, results, file)
    yield Text(f"written to {file.parent}")


def _progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console(stderr=True), transient=True, refresh_per_second=1)
