"""The findings as a picture: operators by kernels and dtypes, and layers and optimizers beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from .findings import Findings, KernelTrial, Kind, ScenarioTrial, Tally
from .report import FLOATS, total

__all__ = ["draw_findings"]

COLOURS = {
    "native": "#b7e1c1",
    "composed": "#cfe3f5",
    "reference": "#e1e4e8",
    "partly": "#fdeeba",
    "failed": "#f4a6a0",
}
LABELS = {
    "native": "a kernel of its own",
    "composed": "composed of its kernels",
    "reference": "the reference",
    "partly": "some cases refused, as declared; or layers that need the reference",
    "failed": "failed",
}
COLUMNS = (*(name.replace("float", "fp").replace("bfp", "bf") for name in FLOATS), "more")
CELL, ROW = 0.42, 0.21  # inches


def draw_findings(findings: Findings, file: Path) -> None:
    """Writes a PNG. A number is how many cases passed; `more` are strided and bad input, golden bytes, opcheck, …"""
    order = {"native": 0, "composed": 1, "reference": 2}
    kernels = list(dict.fromkeys(t.kernel for t in sorted(findings.kernels, key=lambda t: order[t.kind])))
    ops = list(dict.fromkeys(trial.op for trial in findings.kernels))
    subjects, whats = _axes_of(findings.scenarios)
    rows = max(len(ops), len(subjects))
    width = CELL * len(COLUMNS) * len(kernels) + (0.75 * len(whats) + 2.6 if subjects else 0) + 2.6
    figure = Figure(figsize=(width, ROW * rows + 2.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [CELL * len(COLUMNS) * len(kernels), 0.75 * len(whats)] if subjects else [1]
    panels = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    _draw_kernels(panels[0], findings.kernels, ops, kernels, rows)
    if subjects:
        _draw_scenarios(panels[1], findings.scenarios, subjects, whats, rows)
    machine = "\n".join(findings.machine.values())
    figure.suptitle(f"Conformance of {findings.device}\n{machine}", fontsize=9, parse_math=False)
    patches = [Patch(color=colour, label=LABELS[name]) for name, colour in COLOURS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3 if width > 8 else 1, frameon=False, fontsize=8)
    figure.savefig(file)


def _draw_kernels(
    axes: Axes, trials: Iterable[KernelTrial], ops: Sequence[str], kernels: Sequence[str], rows: int
) -> None:
    columns = [column for _ in kernels for column in COLUMNS]
    _prepare(axes, ops, columns, rows)
    for i, kernel in enumerate(kernels):
        left = i * len(COLUMNS)
        axes.text(left + len(COLUMNS) / 2, -1.9, kernel, ha="center", fontsize=8, weight="bold")
        axes.plot([left, left], [-1.2, len(ops)], color="#8b949e", linewidth=0.8)
    for trial in trials:
        row, left = ops.index(trial.op), kernels.index(trial.kernel) * len(COLUMNS)
        own = [trial.dtypes.get(dtype) for dtype in FLOATS]
        more = total(tally for aspect, tally in trial.aspects.items() if aspect != "agreement")
        if any(own):
            for column, tally in enumerate(own):
                _cell(axes, left + column, row, 1, trial.kind, tally)
        else:
            _cell(axes, left, row, len(FLOATS), trial.kind, total(trial.dtypes.values()))
        _cell(axes, left + len(FLOATS), row, 1, trial.kind, more)


def _cell(axes: Axes, left: float, row: int, width: int, kind: Kind, tally: Tally | None) -> None:
    if tally is None or not (tally.passed or tally.refused or tally.failed):
        return
    colour = "failed" if tally.failed else "partly" if tally.refused else kind
    axes.add_patch(Rectangle((left, row), width, 1, facecolor=COLOURS[colour], edgecolor="white", linewidth=0.8))
    number = f"{tally.failed} of {tally.passed + tally.failed}" if tally.failed else str(tally.passed)
    axes.text(left + width / 2, row + 0.53, number, ha="center", va="center", fontsize=6.5, color="#24292f")


def _axes_of(trials: Iterable[ScenarioTrial]) -> tuple[list[str], list[str]]:
    """What stands at the rows and the columns of layers and optimizers."""
    parts = [trial.name.rpartition(", ") for trial in trials]
    return list(dict.fromkeys(subject for subject, _, _ in parts)), list(dict.fromkeys(what for _, _, what in parts))


def _draw_scenarios(
    axes: Axes, trials: Iterable[ScenarioTrial], subjects: Sequence[str], whats: Sequence[str], rows: int
) -> None:
    _prepare(axes, subjects, whats, rows)
    for trial in trials:
        subject, _, what = trial.name.rpartition(", ")
        fallback = any(kernel.endswith(": reference") for kernel in trial.kernels)
        colour = "failed" if trial.failure else "partly" if fallback else "native"
        place = (whats.index(what), subjects.index(subject))
        axes.add_patch(Rectangle(place, 1, 1, facecolor=COLOURS[colour], edgecolor="white", linewidth=0.8))


def _prepare(axes: Axes, rows: Sequence[str], columns: Sequence[str], most: int) -> None:
    axes.set_xlim(0, len(columns))
    axes.set_ylim(most, -2.4)
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows, fontsize=7.5)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    angle = 0 if max(map(len, columns)) < 6 else 25
    for i, column in enumerate(columns):
        axes.text(
            i + 0.5, -0.25, column, fontsize=6.5, rotation=angle, ha="center" if angle == 0 else "left", color="#57606a"
        )
