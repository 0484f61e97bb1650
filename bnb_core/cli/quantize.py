"""`bnb-core quantize`: a model folder into a checkpoint with quantized linear layers."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bnb_core.checkpoint import BLOCKSIZES, FORMATS, CheckpointError, Job, Report, Settings, WeightReport, plan
from bnb_core.functional.fourbit import DEFAULT_4BIT_BLOCKSIZE

from .console import CommandError, byte_count, console, device_of, facts, table

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
        "--blocksize",
        type=int,
        choices=BLOCKSIZES,
        default=DEFAULT_4BIT_BLOCKSIZE,
        metavar="N",
        help="elements per scale (default %(default)s)",
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
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace an OUT that this command wrote (it holds quantization_report.json and no folders); anything else "
        "is refused",
    )


def run(args: argparse.Namespace) -> int:
    """Quantizes with a progress bar, then prints sizes and the worst layers and draws the picture."""
    device = device_of(args.device)
    try:
        settings = Settings(args.to, args.double_quant, args.blocksize, tuple(args.skip))
        job = plan(args.model, args.output, settings, force=args.force)
        report = _run(job, device)
    except CheckpointError as error:
        raise CommandError(str(error)) from None
    except KeyboardInterrupt:
        sentence = f"what is finished stays in {args.output}.partial: the same command goes on from there"
        console(stderr=True).print(sentence, soft_wrap=True, markup=False)
        raise
    picture = _draw(report)  # before anything is printed: the reader of our output may leave early
    out = console()
    _summary(out, report)
    out.print(_worst(report))
    for note in report.notes:
        out.print(Text.assemble(("note: ", "yellow"), note), soft_wrap=True)
    out.print(picture, soft_wrap=True, markup=False)
    return 0


def _run(job: Job, device: torch.device) -> Report:
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


def _draw(report: Report) -> str:
    """Draws the picture where that is possible; says where it is, or why it is not there."""
    if importlib.util.find_spec("matplotlib") is None:
        return "No picture of the errors: matplotlib is not installed (pip install 'bnb-core[plot]')."
    from .picture import draw_errors

    path = report.out / PICTURE
    draw_errors(report, path)
    return f"picture of the errors: {path}"
