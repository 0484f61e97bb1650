"""`python -m benchmarks.curves`: what a small transformer and a classifier learn with each optimizer.

Trains both with torch's AdamW and with ours in 32 and 8 bit, on text and images that are there without a download, and
prints a table; a picture and all numbers go to a folder. Needs what `pip install -e '.[demo]'` brings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor, nn

from bnb_core.cli.console import console, table
from bnb_core.cli.demo import digits
from bnb_core.cli.demo.language import english_text
from bnb_core.cli.demo.layers import held_bytes
from bnb_core.cli.demo.screen import advancing

from .machine import facts_of_run

TITLES = {"text": "Transformer on English text", "digits": "Classifier on handwritten digits"}
STYLES = (
    {"color": "#c9ced6", "linewidth": 6},
    {"color": "#2563a8", "linewidth": 1.8},
    {"color": "#d9822b", "linewidth": 1.8, "linestyle": (0, (4, 2))},
)
TEST_WINDOWS = 64


@dataclass(frozen=True)
class Plan:
    """Amounts of work, and the size of the transformer, whose width is a multiple of 64."""

    seeds: int
    text_steps: int
    digits_steps: int
    width: int
    blocks: int
    context: int
    batch: int


FULL = Plan(seeds=3, text_steps=300, digits_steps=240, width=192, blocks=2, context=64, batch=8)
QUICK = Plan(seeds=2, text_steps=20, digits_steps=20, width=64, blocks=1, context=32, batch=4)


class Transformer(nn.Module):
    """Predicts the next byte of each `[batch, context]`, as logits `[batch, context, 256]`."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        width = plan.width
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Parameter(0.02 * torch.randn(plan.context, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // 64, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(plan.blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(plan.context))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bytes(x) + self.places
        for block in self.blocks:
            h = block(h, src_mask=self.mask, is_causal=True)
        logits: Tensor = self.head(self.norm(h))
        return logits


@dataclass(frozen=True)
class Task:
    """What is learned. model: a new one for a seed. train, test: inputs and what is to be said of each."""

    name: str
    model: Callable[[int], nn.Module]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    batch: int
    steps: int


@dataclass
class Curve:
    """One optimizer on one task. losses: by seed and step. seconds: of each step, and of the optimizer's part of it."""

    task: str
    optimizer: str
    losses: list[list[float]] = field(default_factory=list)
    test_losses: list[float] = field(default_factory=list)
    parameters: int = 0
    state_bytes: int = 0
    seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)

    def last(self) -> list[float]:
        """The training loss of each seed in the mean over the last tenth of the steps."""
        return [statistics.fmean(losses[-max(1, len(losses) // 10) :]) for losses in self.losses]


def tasks(plan: Plan) -> list[Task]:
    return [_text(plan), _digits(plan)]


def _text(plan: Plan) -> Task:
    """The next byte of Python's language reference, of which the last tenth is the test."""

    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Transformer(plan)

    text = torch.tensor(list(english_text().encode()))
    window, cut = plan.context + 1, len(text) * 9 // 10
    windows = (text[:cut].unfold(0, window, 1), text[cut:].unfold(0, window, window)[:TEST_WINDOWS])
    train, test = ((of[:, :-1], of[:, 1:]) for of in windows)
    return Task("text", model, train, test, plan.batch, plan.text_steps)


def _digits(plan: Plan) -> Task:
    train, test = ((split.images, split.digits) for split in digits.data())
    return Task("digits", digits.classifier, train, test, digits.BATCH, plan.digits_steps)


def train(task: Task, seed: int, curves: Sequence[Curve], advance: Callable[[int], None]) -> None:
    """Adds a seed to the curve of each optimizer.

    They take turns at each batch: they learn from the same, and what disturbs the machine meets all of them.
    """
    makers = digits.optimizers()
    models = [task.model(seed) for _ in curves]
    optimizers = [makers[curve.optimizer](model.parameters()) for curve, model in zip(curves, models, strict=True)]
    for curve in curves:
        curve.losses.append([])
    order = torch.Generator().manual_seed(seed)
    for _ in range(task.steps):
        rows = torch.randint(len(task.train[0]), (task.batch,), generator=order)
        x, y = (tensor[rows] for tensor in task.train)
        for curve, model, optimizer in zip(curves, models, optimizers, strict=True):
            _step(curve, model, optimizer, x, y)
        advance(1)
    for curve, model, optimizer in zip(curves, models, optimizers, strict=True):
        with torch.no_grad():
            curve.test_losses.append(_loss(model, *task.test).item())
        curve.parameters = sum(p.numel() for p in model.parameters())
        curve.state_bytes = held_bytes(*optimizer.state.values())


def _step(curve: Curve, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = _loss(model, x, y)
    loss.backward()
    middle = time.perf_counter()
    optimizer.step()
    end = time.perf_counter()
    curve.losses[-1].append(loss.item())
    curve.seconds.append(end - start)
    curve.optimizer_seconds.append(end - middle)


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten())


def measure(plan: Plan) -> list[Curve]:
    """All curves, those of a task side by side and torch's first."""
    found = []
    for task in tasks(plan):
        curves = [Curve(task.name, title) for title in digits.optimizers()]
        with advancing(TITLES[task.name], plan.seeds * task.steps) as advance:
            for seed in range(plan.seeds):
                train(task, seed, curves, advance)
        found += curves
    return found


def _of_tasks(curves: Sequence[Curve]) -> Iterator[tuple[str, list[Curve]]]:
    for name, title in TITLES.items():
        yield title, [curve for curve in curves if curve.task == name]


def report(curves: Sequence[Curve]) -> Iterator[Table]:
    """A table for each task."""
    for title, alike in _of_tasks(curves):
        made = table(f"{title}: {alike[0].parameters:,} parameters, {len(alike[0].losses)} seeds")
        made.add_column("\noptimizer")
        columns = ("last training\nloss", "\ntest loss", "same seed,\nto torch", "state bytes\na parameter")
        for column in (*columns, "step\nms", "of which\noptimizer"):
            made.add_column(column, justify="right")
        for curve in alike:
            pairs = zip(curve.test_losses, alike[0].test_losses, strict=True)
            change = statistics.fmean(loss / torchs - 1 for loss, torchs in pairs)
            made.add_row(
                curve.optimizer,
                _spread(curve.last()),
                _spread(curve.test_losses),
                "" if curve is alike[0] else f"{change:+.2%}",
                f"{curve.state_bytes / curve.parameters:.2f}",
                *(f"{statistics.median(times) * 1e3:.2f}" for times in (curve.seconds, curve.optimizer_seconds)),
            )
        made.caption = (
            "Losses: mean over the seeds ± half of what lies between the lowest and the highest. Times: median."
        )
        made.caption_justify = "left"
        yield made


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {(max(values) - min(values)) / 2:.4f}"


def draw(curves: Sequence[Curve], file: Path) -> None:
    """Training loss by step: the mean over the seeds, and the band from the lowest to the highest."""
    figure = Figure(figsize=(11, 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, alike) in zip(figure.subplots(1, 2), _of_tasks(curves), strict=True):
        for curve, style in zip(alike, STYLES, strict=True):
            losses = torch.tensor(curve.losses)
            width = max(1, losses.shape[1] // 30)
            means = losses.unfold(1, width, width).mean(-1)
            steps = [width * (number + 1) for number in range(means.shape[1])]
            axes.plot(steps, means.mean(0).tolist(), label=curve.optimizer, **style)
            low, high = means.aminmax(dim=0)
            axes.fill_between(steps, low.tolist(), high.tolist(), color=style["color"], alpha=0.25, linewidth=0)
        axes.set(title=title, xlabel=f"step (each point the mean of {width})", ylabel="training loss")
        if losses.max() > 10 * losses.min():
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(file)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description="Loss curves of the optimizers.")
    parser.add_argument("--quick", action="store_true", help="a few seconds: a tiny transformer, a few steps")
    parser.add_argument("--threads", type=int, help="torch's default where it is not given")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark-output/curves"), help="folder of curves.* (%(default)s)"
    )
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    plan = QUICK if args.quick else FULL
    curves = measure(plan)
    args.output.mkdir(parents=True, exist_ok=True)
    numbers = {"machine": facts_of_run(), "plan": asdict(plan), "curves": [asdict(curve) for curve in curves]}
    (args.output / "curves.json").write_text(json.dumps(numbers) + "\n")
    draw(curves, args.output / "curves.png")
    console().print(*report(curves), sep="\n")
    console().print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
