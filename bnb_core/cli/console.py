"""What the commands share: where they print, the error they end with, the devices they see."""

from __future__ import annotations

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bnb_core.ops_registry import devices

__all__ = ["CommandError", "available_devices", "byte_count", "console", "facts", "table"]

_WIDTH_OF_FILES = 120  # of output that goes to a file or a pipe


class CommandError(Exception):
    """Ends a command with one sentence and status 2."""


def console(*, stderr: bool = False) -> Console:
    """A console for results, or for progress on stderr."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and not stderr:
        made.width = max(made.width, _WIDTH_OF_FILES)
    return made


def facts() -> Table:
    """A table of names and what is said of them, without lines."""
    return Table.grid(padding=(0, 2))


def table(title: str) -> Table:
    """A table under a title."""
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def available_devices() -> list[str]:
    """Device types that can compute here: the cpu, the accelerator that torch sees, and those of the kernel table."""
    found = ["cpu"]
    if torch.accelerator.is_available() and (accelerator := torch.accelerator.current_accelerator()) is not None:
        found.append(accelerator.type)
    return list(dict.fromkeys([*found, *filter(_is_available, devices())]))


def _is_available(device: str) -> bool:
    try:
        module = torch.get_device_module(device)
    except RuntimeError:  # torch knows no such device until its vendor's package is imported
        return False
    return bool(getattr(module, "is_available", lambda: False)())


def byte_count(count: float) -> str:
    """A number of bytes as people read it, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
