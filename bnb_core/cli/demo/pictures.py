"""The demo's results as PNG pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .comparison import Measured
from .digits import Training

BLUE, ORANGE, DARK, LIGHT = "#2563a8", "#d9822b", "#33373d", "#c9ced6"
DPI = 150


def draw_comparison(rows: Sequence[Measured], file: Path) -> None:
    """Bytes and perplexity of each variant, side by side."""
    figure = Figure(figsize=(11, 1.6 + 0.62 * len(rows)), layout="constrained")
    size, loss = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    disk = [row.disk_bytes / 1e6 for row in rows]
    memory = [row.memory_bytes / 1e6 for row in rows]
    _bars(size, [place - 0.19 for place in places], disk, BLUE, "{:.0f}", "on disk")
    _bars(size, [place + 0.19 for place in places], memory, LIGHT, "{:.0f}", "in memory")
    size.set(title="Size of the whole model", xlabel="MB")
    size.set_yticks(list(places), labels=[row.title for row in rows])
    size.legend(frameon=False, loc="lower right")
    size.invert_yaxis()
    _bars(loss, list(places), [row.perplexity for row in rows], ORANGE, "{:.2f}", None, height=0.5)
    loss.axvline(rows[0].perplexity, color=DARK, linewidth=1, linestyle=":")
    loss.set(title="Perplexity on English text (lower is better)", xlabel="perplexity")
    for axes in (size, loss):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.14)
    figure.savefig(file, dpi=DPI)


def _bars(
    axes: Axes,
    places: Sequence[float],
    values: Sequence[float],
    color: str,
    form: str,
    label: str | None,
    height: float = 0.36,
) -> None:
    bars = axes.barh(places, values, height=height, color=color, label=label)
    axes.bar_label(bars, labels=[form.format(value) for value in values], padding=3, fontsize=9)


def draw_trainings(rows: Sequence[Training], file: Path) -> None:
    """Loss curves of the optimizers, and the bytes that each one's state takes."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    curves, state = figure.subplots(1, 2, width_ratios=(3, 2))
    styles = (
        {"color": LIGHT, "linewidth": 6},
        {"color": BLUE, "linewidth": 1.8},
        {"color": ORANGE, "linewidth": 1.8, "linestyle": (0, (4, 2))},
    )
    for row, style in zip(rows, styles, strict=True):
        curves.plot(range(1, len(row.losses) + 1), row.losses, label=row.title, **style)
    curves.set(title="Training loss on scikit-learn's digits", xlabel="epoch", ylabel="cross entropy", yscale="log")
    curves.legend(frameon=False)
    colors = [style["color"] for style in styles]
    bars = state.bar(
        [row.title.replace(" AdamW", "\nAdamW") for row in rows],
        [row.state_bytes / 1000 for row in rows],
        width=0.55,
        color=colors,
    )
    state.bar_label(bars, labels=[f"{row.state_bytes / 1000:,.0f}" for row in rows], padding=3)
    state.set(title="Optimizer state", ylabel="kB")
    state.margins(y=0.12)
    for axes in (curves, state):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=DPI)
