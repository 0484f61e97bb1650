"""`bnb-core quantize`: a model folder into a checkpoint with quantized linear layers."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bnb_core.checkpoint import BLOCKSIZES, FORMATS, CheckpointError, Job, Report, Settings, WeightReport, plan

from .console import CommandError, available_devices, byte_count, console, facts, table

__all__ = ["PICTURE", "add_arguments", "run"]

PICTURE = "quantization_error.png"
_WORST = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to quantize, to what, and where to."""
    parser.add_argument("model", metavar="MODEL_DIR", type=Path, help="folder of config.json and safetensors files")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="the new folder")
    parser.add_argument("--to", choices=FORMATS, required=True, help="4-bit NF4 or FP4, or LLM.int8()")
    parser.add_argument("--double-quant", action="store_true", help="quantize the scales of nf4 and fp4 as well")
    parser.add_argument(
        "--blocksize", type=int, choices=BLOCKSIZES, default=64, metavar="N", help="elements per scale (default 64)"
    )
    parser.add_argument(
        "--skip",
        metavar="REGEX",
        action="append",
        default=[],
        help="leave modules in whose name it is found as they are; may be repeated. Embeddings, output heads, routers "
        "and experts of mixtures are left in any case",
    )
    parser.add_argument(
        "--device", default="cpu", help="where to compute (default cpu); the bytes are the same everywhere"
    )
    parser.add_argument("--force", action="store_true", help="replace an OUT that holds a checkpoint")


def run(args: argparse.Namespace) -> int:
    """Quantizes with a progress bar, then prints sizes and the worst layers and draws the picture."""
    if args.device.partition(":")[0] not in available_devices():
        raise CommandError(f"device {args.device} is not available; there is {', '.join(available_devices())}")
    try:
        settings = Settings(args.to, args.double_quant, args.blocksize, tuple(args.skip))
        job = plan(args.model, args.output, settings, force=args.force)
        report = _run(job, args.device)
    except CheckpointError as error:
        raise CommandError(str(error)) from None
    except KeyboardInterrupt:
        sentence = f"what is finished stays in {args.output}.partial: the same command goes on from there"
        console(stderr=True).print(sentence, soft_wrap=True, markup=False)
        raise
    out = console()
    _summary(out, report)
    out.print(_worst(report))
    for note in report.notes:
        out.print(Text.assemble(("note: ", "yellow"), note), soft_wrap=True)
    _draw(out, report)
    return 0


def _run(job: Job, device: str) -> Report:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[tensor]}"),
    )
    with Progress(*columns, console=console(stderr=True)) as progress:
        task = progress.add_task(f"to {job.settings.to}", total=job.total_bytes, tensor="")

        def done(tensor: str, nbytes: int) -> None:
            progress.update(task, advance=nbytes, tensor=tensor)

        report = job.run(done, device=device)
        progress.update(task, tensor="")
    return report


def _summary(out: Console, report: Report) -> None:
    settings = report.settings
    what = settings.to + (" with double quantization" if settings.double_quant else "")
    if settings.to != "int8":
        what += f", blocks of {settings.blocksize}"
    out.print(Text.assemble((str(report.out), "bold"), f": {len(report.weights)} weights to {what}"), soft_wrap=True)
    kept = ", ".join(f"{count} {reason}" for reason, count in report.kept_reasons())
    weights_before = sum(weight.bytes_before for weight in report.weights)
    weights_after = sum(weight.bytes_after for weight in report.weights)
    lines = facts()
    lines.add_row("files", _change(report.bytes_before, report.bytes_after))
    lines.add_row("quantized weights", _change(weights_before, weights_after))
    lines.add_row("2-D weights kept", kept or "none")
    if report.resumed:
        lines.add_row("taken over", f"{len(report.resumed)} files of an interrupted run")
    out.print(lines)


def _change(before: int, after: int) -> str:
    return f"{byte_count(before)} → {byte_count(after)} ({after / before:.0%})"


def _worst(report: Report) -> Table:
    found = table("Largest errors: ‖W - Q‖ / ‖W‖")
    found.add_column("weight", overflow="fold")
    found.add_column("shape", no_wrap=True)
    for column in ("relative", "mean |W - Q|"):
        found.add_column(column, justify="right", no_wrap=True)
    for weight in report.worst(_WORST):
        found.add_row(weight.name, " x ".join(map(str, weight.shape)), *_errors(weight))
    return found


def _errors(weight: WeightReport) -> tuple[str, str]:
    if weight.relative_error is None or weight.mean_abs_error is None:
        return "not finite", "not finite"
    return f"{weight.relative_error:.4f}", f"{weight.mean_abs_error:.2e}"


def _draw(out: Console, report: Report) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        out.print("No picture of the errors: matplotlib is not installed (pip install 'bnb-core[plot]').", markup=False)
        return
    from .picture import draw_errors

    path = report.out / PICTURE
    draw_errors(report, path)
    out.print(f"picture of the errors: {path}", soft_wrap=True, markup=False)
