"""`bnb-core conformance`: each kernel of a device against the reference, with every case of its operator."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.text import Text

from bnb_core.conformance import LEVELS, KernelTrial, as_json, as_markdown, conform, operators_of
from bnb_core.ops_registry import OPS

from .check import TRIALS, check_device
from .console import CommandError, available_devices, console

__all__ = ["add_arguments", "run"]

FORMATS: dict[str, Callable[[str, Sequence[KernelTrial]], str]] = {".json": as_json, ".md": as_markdown}
SHOWN = 3  # failures of one kernel; the report has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Device, operators, cases, report."""
    parser.add_argument("--device", default="cpu", help="device type (cpu)")
    parser.add_argument("--op", action="append", metavar="NAME", help="one operator; can be given again")
    parser.add_argument("--level", choices=LEVELS, default="full", help="the operators that a claim takes (full)")
    parser.add_argument("--all-cases", action="store_true", help="the long lists of sizes too, which takes minutes")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all of it to a .json or .md file")


def run(args: argparse.Namespace) -> int:
    """A line for each kernel, and the trials of `check` where no operator is named; status 1 where one failed."""
    if args.device not in available_devices():
        raise CommandError(f"there is no device {args.device} here; there is {', '.join(available_devices())}")
    unknown = [op for op in args.op or () if op not in OPS]
    if unknown:
        raise CommandError(f"there is no operator {', '.join(unknown)}; there are {', '.join(OPS)}")
    if args.report is not None and args.report.suffix not in FORMATS:
        raise CommandError(f"{args.report} is neither of {', '.join(FORMATS)}")
    if args.report is not None and not args.report.absolute().parent.is_dir():
        raise CommandError(f"{args.report}: there is no folder {args.report.absolute().parent}")
    out = console()
    trials = []
    for trial in conform(args.device, args.op or operators_of(args.level), "full" if args.all_cases else "quick"):
        trials.append(trial)
        out.print(_line(trial))
        for failure in trial.failures[:SHOWN]:
            out.print(Text(f"    {failure.case}: {failure.sentence}"))
            out.print(Text("\n".join(f"        {line}" for line in failure.program.splitlines()), "dim"))
    end_to_end = [] if args.op else check_device(args.device)[0]
    for sentence in end_to_end:
        out.print(Text(f"end to end: {sentence}", "red"))
    if args.report is not None:
        args.report.write_text(FORMATS[args.report.suffix](args.device, trials))
    failed = [trial for trial in trials if trial.failures]
    tried = sum(trial.kind != "reference" for trial in trials)
    verdict = f"{len(failed)} of {tried} kernels FAILED" if failed else f"{tried} kernels conform"
    if not args.op:
        verdict += f"; end to end ({', '.join(TRIALS)}): {'FAILED' if end_to_end else 'ok'}"
    out.print(Text(verdict, "bold red" if failed or end_to_end else "bold green"))
    return 1 if failed or end_to_end else 0


def _line(trial: KernelTrial) -> Text:
    if trial.kind == "reference":
        return Text(f"{trial.op:<32} {trial.kernel:<16} no kernel of its own", "dim")
    verdict = ("failed", "red") if trial.failures else ("ok", "green")
    numbers = f"  {trial.kind}, {trial.passed} cases passed, {trial.refused} refused, {len(trial.failures)} failed"
    return Text.assemble(f"{trial.op:<32} {trial.kernel:<16} ", verdict, numbers)
