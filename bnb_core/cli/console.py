"""What the commands share: where they print, the error they end with, the devices they see."""

from __future__ import annotations

from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bnb_core.ops_registry import available_devices

__all__ = ["CommandError", "byte_count", "console", "device_of", "facts", "table"]

_WIDTH_OF_FILES = 120  # of output that goes to a file or a pipe


class CommandError(Exception):
    """Ends a command with one sentence and status 2."""


class _Plain(Console):
    """For files and pipes: without the spaces that fill the lines of tables."""

    def print(self, *objects: Any, **options: Any) -> None:
        with self.capture() as printed:
            super().print(*objects, **options)
        self.file.write("\n".join(map(str.rstrip, printed.get().split("\n"))))
        self.file.flush()


def console(*, stderr: bool = False) -> Console:
    """A console for results, or for progress on stderr."""
    made = Console(stderr=stderr, highlight=False)
    if made.is_terminal or stderr:
        return made
    return _Plain(highlight=False, width=max(made.width, _WIDTH_OF_FILES))


def facts() -> Table:
    """A table of names and what is said of them, without lines."""
    return Table.grid(padding=(0, 2))


def table(title: str) -> Table:
    """A table under a title."""
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def device_of(name: str, *, here: bool = True) -> torch.device:
    """The device of an option. Raises CommandError for no device's name and, where `here`, for one that is not here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CommandError(f"{name!r} is no device; expected a name as cpu or cuda:0") from None
    if here and device.type not in available_devices():
        raise CommandError(f"device {name} is not available; there is {', '.join(available_devices())}")
    if here and device.index is not None and device.index >= (count := _count(device.type)):
        raise CommandError(f"device {name} is not available; the count of {device.type} devices is {count}")
    return device


def _count(device: str) -> int:
    return int(getattr(torch.get_device_module(device), "device_count", lambda: 1)())


def byte_count(count: float) -> str:
    """A number of bytes as people read it, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
