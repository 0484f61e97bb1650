"""The results as a picture: how many times as fast ours is, one row a work, one dot a contestant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .measure import Outcome
from .work import Family, Target

__all__ = ["draw"]

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#332288", "#ee7733", "#009988")
MARKERS = "osD^vPX*<"
LIMIT = "#9aa0a8"
MET, MISSED, DARK = "#228833", "#cc3311", "#33373d"
ROW, HEAD = 0.2, 0.75  # inches


def draw(head: Mapping[str, Any], results: Sequence[tuple[Family, list[Outcome]]], file: Path) -> None:
    """Writes the PNG. A target is a tick at the ratio that it asks for, green where it is met."""
    results = [(family, outcomes) for family, outcomes in results if outcomes]
    heights = [ROW * len(outcomes) + HEAD for _, outcomes in results]
    figure = Figure(figsize=(11, sum(heights) + 1.1), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    best, styles = head["settings"]["best"], _styles(results)
    panels = figure.subplots(len(results), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (family, outcomes) in zip(panels, results, strict=True):
        _panel(axes, family, outcomes, styles, best)
    machine = head["machine"]
    figure.suptitle(
        f"bnb_core {machine['versions']['bnb_core']}: how many times as fast as each\n"
        f"{machine['processor']}, {machine['threads']} threads, {head['started']}; a tick is a target, "
        "a hollow mark a limit",
        fontsize=10,
        parse_math=False,
    )
    figure.savefig(file)


def _styles(results: Sequence[tuple[Family, list[Outcome]]]) -> dict[str, dict[str, Any]]:
    entries = [entry for _, outcomes in results for outcome in outcomes for entry in outcome.contestants[1:]]
    limits = dict.fromkeys(entry.name for entry in entries if entry.limit)
    peers = dict.fromkeys(entry.name for entry in entries if not entry.limit and entry.ratio is not None)
    hollow = {"color": LIMIT, "markerfacecolor": "white"}
    styles = {name: {"marker": marker, **hollow} for name, marker in zip(limits, cycle(MARKERS), strict=False)}
    for name, colour, marker in zip(peers, cycle(COLOURS), cycle(MARKERS), strict=False):
        styles[name] = {"color": colour, "marker": marker}
    return styles


def _panel(
    axes: Axes, family: Family, outcomes: Sequence[Outcome], styles: Mapping[str, Mapping[str, Any]], best: bool
) -> None:
    targets = {work.name: work.targets for work in family.works}
    seen = {}
    for row, outcome in enumerate(outcomes):
        found = ((entry.name, entry.by(best)[1]) for entry in outcome.contestants[1:])
        ratios = {name: ratio for name, ratio in found if ratio is not None}
        for name, ratio in ratios.items():
            seen[name] = Line2D([], [], linestyle="", markersize=5, label=name, **styles[name])
            axes.plot([ratio], [row], markersize=5, zorder=3, **styles[name])
        for target in targets[outcome.work]:
            reached = [ratios[peer] for peer in target.peers if peer in ratios] if isinstance(target, Target) else []
            if isinstance(target, Target) and reached:
                colour = MET if min(reached) >= target.ratio else MISSED
                axes.plot([target.ratio] * 2, [row - 0.35, row + 0.35], color=colour, linewidth=1.6, zorder=2)
                axes.plot([target.ratio, min(reached)], [row] * 2, color=colour, linewidth=0.8, zorder=1)
    axes.axvline(1, color=DARK, linewidth=0.8)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(outcomes)), labels=[outcome.work for outcome in outcomes], fontsize=7, parse_math=False)
    axes.set_ylim(len(outcomes) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(family.title, loc="left", fontsize=9)
    axes.legend(handles=list(seen.values()), loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7)
