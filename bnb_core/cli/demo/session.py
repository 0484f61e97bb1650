"""The demo from beginning to end."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.rule import Rule

import bnb_core
from bnb_core.checkpoint import quantize_checkpoint
from bnb_core.cli.console import console, device_of

from . import comparison, digits, language, model, pictures, tables
from .calls import counted
from .comparison import Measured, Reader
from .digits import Training
from .plan import Plan, Variant, plan_of
from .screen import advancing, megabytes, waiting

MODEL_NAME = "SmolLM2-135M-Instruct"


def demonstrate(args: argparse.Namespace) -> None:
    """Does all of the demo that `args` asks for.

    Raises:
        CommandError: the device, the model's file or the text is not on this machine.
    """
    screen, start, plan = console(), time.perf_counter(), plan_of(args)
    device = device_of(args.device)
    model.quiet()
    args.output.mkdir(parents=True, exist_ok=True)
    with _workdir(args.workdir) as work:
        rows = compare(screen, work, plan, getattr(torch, args.dtype), device)
    trainings = train(screen, plan)
    seconds = time.perf_counter() - start
    files = save(args.output, plan, rows, trainings, seconds)
    screen.print(f"\nDone in {seconds:.0f} s. In {args.output.resolve()}: {', '.join(files)}", soft_wrap=True)


@contextmanager
def _workdir(wanted: Path | None) -> Iterator[Path]:
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="bnb-core-demo-") as folder:
            yield Path(folder)
    else:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted


def compare(screen: Console, work: Path, plan: Plan, dtype: torch.dtype, device: torch.device) -> list[Measured]:
    """Makes, quantizes and measures the language model, and shows the tables."""
    screen.print(Rule("A language model in 8 and 4 bits"))
    folder = unpacked(screen, work)
    screen.print(
        f"Perplexity is measured on {plan.scored_tokens:,} tokens of Python's own language reference, read in windows "
        f"of {plan.window} tokens that move on by {plan.stride}: each token is scored once, after at least "
        f"{plan.context} tokens of context, and the tokens are the same for each format.\n"
    )
    reader = Reader.of(folder, plan, dtype, device)
    rows = [comparison.measure_float(folder, reader)]
    for variant in plan.variants:
        with counted() as calls:
            quantized = quantize(screen, folder, work, variant)
            rows.append(comparison.measure_quantized(folder, quantized, variant, reader))
        rows[-1].kernels = calls
    screen.print(tables.comparison(rows), tables.kernels(rows), tables.samples(language.PROMPT, rows))
    return rows


def unpacked(screen: Console, work: Path) -> Path:
    """The folder with the model as bf16 safetensors."""
    gguf, folder = model.find_gguf(), work / MODEL_NAME
    with waiting(f"Unpacking {gguf.name}"):
        model.unpack(gguf, folder)
    screen.print(
        f"{MODEL_NAME} is unpacked and saved as bf16 safetensors, {megabytes(model.weight_bytes(folder))} MB. "
        f"The weights in {gguf.name} have about 4 bits already: what follows is compared with the values that they "
        "stand for.\n"
    )
    return folder


def quantize(screen: Console, folder: Path, work: Path, variant: Variant) -> Path:
    """The folder with the model quantized, as `bnb-core quantize` does it."""
    out = work / f"{MODEL_NAME}-{variant.key}"
    start = time.perf_counter()
    with advancing(f"{variant.title}: quantizing", model.weight_bytes(folder)) as advance:
        report = quantize_checkpoint(
            folder,
            out,
            to=variant.to,
            double_quant=variant.double,
            force=True,
            progress=lambda _, count: advance(count),
        )
    errors = [weight.relative_error or 0.0 for weight in report.weights]
    options = f"--to {variant.to}" + " --double-quant" * variant.double
    screen.print(
        f"bnb-core quantize {options}: {len(errors)} layers in {time.perf_counter() - start:.1f} s, "
        f"mean relative error {sum(errors) / len(errors):.2%}"
    )
    return out


def train(screen: Console, plan: Plan) -> list[Training]:
    """Trains the classifier with each optimizer, and shows the table."""
    screen.print(Rule("A classifier trained with 32-bit and 8-bit AdamW"))
    rows = []
    for title, make in digits.optimizers().items():
        with counted() as calls, advancing(title, plan.epochs) as advance:
            rows.append(digits.train(title, make, plan.epochs, advance))
        rows[-1].kernels = calls
    screen.print(tables.trainings(rows), tables.kernels(rows))
    return rows


def save(
    folder: Path, plan: Plan, rows: Sequence[Measured], trainings: Sequence[Training], seconds: float
) -> list[str]:
    """Writes the pictures and all numbers; returns the names of the files."""
    pictures.draw_comparison(rows, folder / "formats.png")
    pictures.draw_trainings(trainings, folder / "optimizers.png")
    numbers = {
        "model": MODEL_NAME,
        "seconds": seconds,
        "plan": asdict(plan),
        "machine": machine(),
        "formats": [asdict(row) for row in rows],
        "optimizers": [asdict(row) for row in trainings],
    }
    (folder / "demo.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return ["formats.png", "optimizers.png", "demo.json"]


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "bnb_core": bnb_core.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
