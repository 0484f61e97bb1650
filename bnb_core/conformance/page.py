"""The findings as a page: operators by dtypes in colour, layers and optimizers, failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from .findings import Findings, KernelTrial, ScenarioTrial, Tally
from .report import FLOATS, claims, failures, share_of_tolerance, times, total

__all__ = ["as_html"]

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #24292f; max-width: 1180px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 2em }
td, th { padding: 3px 9px; text-align: left; border-bottom: 1px solid #e4e7eb; white-space: nowrap }
th { font-weight: 600; vertical-align: bottom } td.number { text-align: right }
td.first { border-top: 2px solid #c4c9d0 }
.native { background: #b7e1c1 } .composed { background: #cfe3f5 } .reference { background: #e9ebee }
.partly { background: #fdeeba } .failed { background: #f4a6a0; font-weight: 600 }
code, pre { font: 12px/1.4 ui-monospace, monospace } pre { background: #f4f5f7; padding: .7em 1em; overflow-x: auto }
dl { display: grid; grid-template-columns: max-content auto; gap: 2px 1.5em } dt { color: #6a737d } dd { margin: 0 }
"""
LEGEND = (
    ("native", "a kernel of its own"),
    ("composed", "composed of its kernels"),
    ("reference", "the reference"),
    ("partly", "some cases refused, as declared"),
    ("failed", "failed"),
)


def as_html(findings: Findings) -> str:
    """One file that needs no other."""
    title = f"Conformance of {escape(findings.device)}"
    body = "\n".join(_body(findings))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"


def _body(findings: Findings) -> Iterator[str]:
    yield "<dl>"
    yield from (f"<dt>{escape(name)}<dd>{escape(value)}" for name, value in findings.machine.items())
    for level, holds, why in claims(findings):
        verdict = "holds" if holds else "<b class=failed>does not hold</b>"
        yield f"<dt>level {level}<dd>{verdict}: {escape(why)}"
    yield "</dl><p>" + " ".join(f"<span class={name}>&nbsp;{text}&nbsp;</span>" for name, text in LEGEND) + "</p>"
    yield "<h2>Kernels</h2>" + "\n".join(_kernels(findings.kernels))
    if findings.scenarios:
        yield "<h2>Layers and optimizers</h2>" + "\n".join(_scenarios(findings.scenarios))
    found = list(failures(findings))
    if found:
        yield f"<h2>{len(found)} failures</h2>"
    for what, failure in found:
        sentences = "<br>".join(map(escape, failure.sentences))
        yield f"<h3>{escape(what)}: {escape(failure.aspect)}, {escape(failure.case)}</h3>"
        yield f"<p>{sentences}</p><pre>{escape(failure.program)}</pre>"


def _kernels(trials: list[KernelTrial]) -> Iterator[str]:
    """A row for each kernel, a column for each dtype and for each thing that was tried besides."""
    aspects = list(dict.fromkeys(name for trial in trials for name in trial.aspects if name != "agreement"))
    heads = ["operator", "kernel", *FLOATS, "other", *aspects]
    heads += ["largest distance,<br>of the tolerance", "× reference", "of a copy's<br>bandwidth"]
    yield f"<table><tr>{''.join(f'<th>{head}' for head in heads)}"
    before = ""
    for trial in trials:
        edge = " class=first" if trial.op != before else ""
        name = f"<code>{trial.op}</code>" if trial.op != before else ""
        cells = [f"<td{edge}>{name}", f"<td{edge}><code>{escape(trial.kernel)}</code>"]
        cells += [_tally(trial.kind, trial.dtypes.get(dtype)) for dtype in FLOATS]
        cells.append(_tally(trial.kind, total(t for name, t in trial.dtypes.items() if name not in FLOATS)))
        cells += [_tally(trial.kind, trial.aspects.get(aspect)) for aspect in aspects]
        cells += [f"<td class=number>{text}" for text in (share_of_tolerance(trial), *times(trial))]
        yield f"<tr>{''.join(cells)}"
        before = trial.op
    yield "</table>"


def _tally(kind: str, tally: Tally | None) -> str:
    if tally is None or not (tally.passed or tally.refused or tally.failed):
        return "<td>"
    colour = "failed" if tally.failed else "partly" if tally.refused else kind
    parts = [f"{count} {word}" for count, word in ((tally.refused, "refused"), (tally.failed, "failed")) if count]
    return f"<td class={colour}>{', '.join([str(tally.passed), *parts])}"


def _scenarios(trials: list[ScenarioTrial]) -> Iterator[str]:
    """A row for each layer or optimizer, a column for each thing done with it."""
    table: dict[str, dict[str, ScenarioTrial]] = {}
    for trial in trials:
        subject, _, what = trial.name.rpartition(", ")
        table.setdefault(subject, {})[what] = trial
    groups: dict[tuple[str, ...], list[str]] = {}
    for subject, found in table.items():
        groups.setdefault(("layer",) if "forward" in found else ("optimizer",), []).append(subject)
    for (kind,), subjects in groups.items():
        columns = list(dict.fromkeys(what for subject in subjects for what in table[subject]))
        yield f"<table><tr><th>{kind}{''.join(f'<th>{column}' for column in columns)}<th>kernels"
        for subject in subjects:
            found = table[subject]
            kernels = dict.fromkeys(kernel for trial in found.values() for kernel in trial.kernels)
            verdicts = (_verdict(found.get(column)) for column in columns)
            yield f"<tr><td>{escape(subject)}{''.join(verdicts)}<td>{_wrapped(kernels)}"
        yield "</table>"


def _verdict(trial: ScenarioTrial | None) -> str:
    if trial is None:
        return "<td>"
    fallback = any(kernel.endswith(": reference") for kernel in trial.kernels)
    return "<td class=failed>failed" if trial.failure else f"<td class={'partly' if fallback else 'native'}>ok"


def _wrapped(kernels: Iterable[str]) -> str:
    return "<br>".join(f"<code>{escape(kernel)}</code>" for kernel in kernels)
