"""What the screen of the demo has in common."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from bnb_core.cli.console import console


@contextmanager
def advancing(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar inside the block, which gets the function that moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)

        def advance(count: int) -> None:
            bar.advance(task, count)

        yield advance


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """Shows that work goes on inside the block; bars that others draw on stderr meanwhile are dropped."""
    with Console(file=sys.stderr).status(title), redirect_stderr(io.StringIO()):
        yield


def megabytes(count: int) -> str:
    """A number of bytes in units of 10**6."""
    return f"{count / 1e6:,.1f}"
