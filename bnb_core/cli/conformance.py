"""`bnb-core conformance`: each kernel of a device against the reference, then layers and optimizers on it."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from bnb_core._version import __version__
from bnb_core.conformance import (
    LEVELS,
    DeviceLost,
    Failure,
    Findings,
    KernelTrial,
    as_html,
    as_json,
    as_markdown,
    claims,
    conform,
    end_to_end,
    operators_of,
    times,
)
from bnb_core.ops_registry import OPS, available_devices, kernels_for
from bnb_core.ops_registry.cases import Level

from .console import CommandError, console

__all__ = ["add_arguments", "run"]

SHOWN = 3  # failures of one kernel; the report has all


def _draw(findings: Findings, file: Path) -> None:
    from bnb_core.conformance.picture import draw_findings  # brings matplotlib

    draw_findings(findings, file)


def _writer(text: Callable[[Findings], str]) -> Callable[[Findings, Path], None]:
    def write(findings: Findings, file: Path) -> None:
        file.write_text(text(findings), encoding="utf-8")

    return write


FORMATS: dict[str, Callable[[Findings, Path], None]] = {
    ".html": _writer(as_html),
    ".json": _writer(as_json),
    ".md": _writer(as_markdown),
    ".png": _draw,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Device, operators, cases, report."""
    parser.add_argument("--device", default="cpu", help="device type (cpu)")
    parser.add_argument("--op", action="append", metavar="NAME", help="one operator; can be given again")
    parser.add_argument("--kernel", action="append", metavar="NAME", help="one kernel, as cpu/avx2; can be given again")
    parser.add_argument("--level", choices=LEVELS, default="full", help="the operators that a claim takes (full)")
    parser.add_argument("--all-cases", action="store_true", help="the long lists of sizes too, which takes minutes")
    parser.add_argument("--large", action="store_true", help="more than 2^31 elements too: gigabytes a case")
    parser.add_argument("--no-times", action="store_true", help="do not time the kernels")
    parser.add_argument(
        "--report", type=Path, action="append", metavar="FILE", help=f"write all of it: {', '.join(FORMATS)}"
    )


def run(args: argparse.Namespace) -> int:
    """A line for each kernel, layers and optimizers where no operator or kernel is named; status 1 where one failed.

    A run that is interrupted, or loses the device, writes its reports of what was tried until then.
    """
    _refuse_wrong_use(args)
    out = console()
    findings = Findings(args.device, "some" if args.op or args.kernel else args.level, _machine(args.device))
    cases: Level = "full" if args.all_cases else "quick"
    ops = args.op or operators_of(args.level)
    scenarios = []
    try:
        for trial in conform(args.device, ops, cases, kernels=args.kernel, beyond=args.large, timed=not args.no_times):
            findings.kernels.append(trial)
            out.print(_line(trial))
            for failure in trial.failures[:SHOWN]:
                _show(failure, out)
        for scenario in () if args.op or args.kernel else end_to_end(args.device, args.level):
            scenarios.append(scenario)
            if scenario.failure is not None:
                _show(scenario.failure, out)
    except DeviceLost as error:
        _write(args, findings)
        out.print(_verdict(findings))
        out.print(Text(str(error), "bold red"))
        return 1
    except KeyboardInterrupt:
        _write(args, findings)
        out.print(_verdict(findings))
        raise
    findings.scenarios += scenarios  # all of them, for a claim takes all
    if not findings.kernels:
        raise CommandError(
            "no kernel was tried: none of those named is available here for an operator that is asked for"
        )
    _write(args, findings)
    for level, holds, why in claims(findings):
        out.print(
            Text.assemble(f"level {level} ", ("holds", "green") if holds else ("does not hold", "red"), f": {why}")
        )
    out.print(_verdict(findings))
    return 1 if findings.failed else 0


def _write(args: argparse.Namespace, findings: Findings) -> None:
    for report in args.report or ():
        FORMATS[report.suffix](findings, report)


def _refuse_wrong_use(args: argparse.Namespace) -> None:
    if args.device not in available_devices():
        raise CommandError(f"there is no device {args.device} here; there is {', '.join(available_devices())}")
    unknown = [op for op in args.op or () if op not in OPS]
    if unknown:
        raise CommandError(f"there is no operator {', '.join(unknown)}; there are {', '.join(OPS)}")
    names = {row.name for op in OPS for row in kernels_for(op, args.device)}
    unknown = [kernel for kernel in args.kernel or () if kernel not in names]
    if unknown:
        raise CommandError(f"{args.device} has no kernel {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    for report in args.report or ():
        if report.suffix not in FORMATS:
            raise CommandError(f"{report} is none of {', '.join(FORMATS)}")
        if report.suffix == ".png" and importlib.util.find_spec("matplotlib") is None:
            raise CommandError(f"{report} needs matplotlib, which is not installed (pip install 'bnb-core[plot]')")
        if report.is_dir():
            raise CommandError(f"{report} is a folder")
        if not report.absolute().parent.is_dir():
            raise CommandError(f"{report}: there is no folder {report.absolute().parent}")


def _machine(device: str) -> dict[str, str]:
    name = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    if device != "cpu":
        name = getattr(torch.get_device_module(device), "get_device_name", lambda: device)()
    versions = f"bnb_core {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return {"machine": f"{name}, {platform.system()}, {torch.get_num_threads()} threads", "versions": versions}


def _show(failure: Failure, out: Console) -> None:
    out.print(Text(f"    {failure.aspect}, {failure.case}: {'; '.join(failure.sentences)}"))
    out.print(Text("\n".join(f"        {line}" for line in failure.program.splitlines()), "dim"))


def _line(trial: KernelTrial) -> Text:
    verdict = ("failed", "red") if trial.failures else ("ok", "green")
    counts = ((trial.passed, "passed"), (trial.refused, "refused"), (len(trial.failures), "failed"))
    numbers = "  " + ", ".join([trial.kind, *(f"{count} {word}" for count, word in counts if count)])
    if trial.speed is not None:
        numbers += ", {} the reference, {} of a copy".format(*times(trial))
    return Text.assemble(f"{trial.op:<32} {trial.kernel:<16} ", verdict, numbers)


def _verdict(findings: Findings) -> Text:
    kernels = sum(bool(trial.failures) for trial in findings.kernels)
    scenarios = sum(trial.failure is not None for trial in findings.scenarios)
    parts = [
        f"{kernels} of {len(findings.kernels)} kernels FAILED"
        if kernels
        else f"{len(findings.kernels)} kernels conform"
    ]
    if findings.scenarios:
        of = f"{len(findings.scenarios)} scenarios of layers and optimizers"
        parts.append(f"{scenarios} of {of} FAILED" if scenarios else f"{of} pass")
    return Text("; ".join(parts), "bold red" if findings.failed else "bold green")
