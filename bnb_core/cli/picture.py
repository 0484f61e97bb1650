"""The picture of a quantization's errors: one dot per weight, a colour per kind of layer."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bnb_core.checkpoint import Report

__all__ = ["draw_errors"]

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#332288", "#ee7733")
_MARKERS = "osD^v"
_DEPTH = re.compile(r"\.(\d+)\.")


def draw_errors(report: Report, path: Path) -> None:
    """Writes a PNG of relative error by depth in the model; weights without a finite error are left out."""
    kinds = _by_kind(report)
    figure = Figure(figsize=(9, 5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (kind, dots) in enumerate(sorted(kinds.items())):
        depths, errors = zip(*sorted(dots), strict=True)
        style = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index // len(_COLOURS) % len(_MARKERS)]}
        axes.plot(depths, errors, linewidth=1, markersize=4, label=kind, **style)
    axes.set_xlabel("layer")
    axes.set_ylabel("relative error ‖W - Q‖ / ‖W‖, %")
    double = " with double quantization" if report.settings.double_quant else ""
    title = f"{report.out.name}: {len(report.weights)} weights in {report.settings.to}{double}"
    axes.set_title(title, loc="left", parse_math=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if kinds:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path)


def _by_kind(report: Report) -> dict[str, list[tuple[int, float]]]:
    """Kind of layer → (depth, error in %). Kinds are told apart by what stands before the depth where that differs."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for place, weight in enumerate(report.weights):
        if weight.relative_error is not None:
            module = weight.name.removesuffix(".weight")
            depth = _DEPTH.search(module)
            stack = module[: depth.start()] if depth else ""
            dot = (int(depth[1]) if depth else place, 100 * weight.relative_error)
            found.setdefault((stack, module.rpartition(".")[2]), []).append(dot)
    several = len({stack for stack, _ in found}) > 1
    return {f"{stack} {kind}" if several else kind: dots for (stack, kind), dots in found.items()}
