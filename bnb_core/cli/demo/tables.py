"""The demo's results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from bnb_core.cli.console import table

from .comparison import Measured
from .digits import Training
from .screen import megabytes


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    made = table(title)
    for column in names:
        made.add_column(column, overflow="fold")
    for column in numbers:
        made.add_column(column, justify="right")
    return made


def comparison(rows: Sequence[Measured]) -> Table:
    base = rows[0]
    made = _table(
        "The language model in each format",
        ["\nlayers"],
        ["disk\nMB", "memory\nMB", "linears\nMB", "\nperplexity", "\nchange", "reads\ntok/s", "writes\ntok/s"],
    )
    for row in rows:
        change = "" if row is base else f"{row.perplexity / base.perplexity - 1:+.1%}"
        made.add_row(
            row.title,
            megabytes(row.disk_bytes),
            megabytes(row.memory_bytes),
            megabytes(row.linear_bytes),
            f"{row.perplexity:.2f}",
            change,
            f"{row.read_speed:,.0f}",
            f"{row.write_speed:.1f}",
        )
    made.caption = f"Embedding and norms are not quantized: bf16 on disk, {base.title} in memory."
    made.caption_justify = "left"
    return made


def samples(prompt: str, rows: Sequence[Measured]) -> Table:
    made = _table("What each answers, by the most likely token each time", ["layers", prompt], [])
    for row in rows:
        made.add_row(row.title, Text(row.sample))
    return made


def kernels(rows: Sequence[Measured | Training]) -> Table:
    made = _table("Which kernel ran each op", ["for", "op", "kernel"], ["calls"])
    for row in rows:
        for op, calls in row.kernels.items():
            for kernel, count in calls.items():
                made.add_row(row.title, op, kernel, f"{count:,}")
    return made


def trainings(rows: Sequence[Training]) -> Table:
    made = _table(
        "The digits classifier with each optimizer",
        ["\noptimizer"],
        ["training\nloss", "test\nloss", "test\naccuracy", "state\nkB", "\nseconds"],
    )
    for row in rows:
        made.add_row(
            row.title,
            f"{row.losses[-1]:.5f}",
            f"{row.test_loss:.4f}",
            f"{row.test_accuracy:.1%}",
            f"{row.state_bytes / 1000:,.0f}",
            f"{row.seconds:.1f}",
        )
    return made
