"""`bnb-core info`: the versions, the backends, and the table of operators by devices."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bnb_core._version import __version__
from bnb_core.ops_registry import OPS, Kernel, backends, devices, kernels_for

from .console import available_devices, console, facts, table

__all__ = ["add_arguments", "run"]

RELATED = (
    *("accelerate", "bitsandbytes", "diffusers", "matplotlib", "numpy", "peft"),
    *("rich", "safetensors", "torchao", "transformers", "triton", "trl"),
)
SETTINGS = ("BNB_CORE_FORCE", "BNB_CORE_FALLBACK")
_COLOURS = {"loaded": "green", "unavailable": "yellow", "failed": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`info` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """Prints it all; imports none of the related packages."""
    out = console()
    _versions(out)
    out.print(_backends())
    out.print(_kernels())
    return 0


def _versions(out: Console) -> None:
    out.print(f"[bold]bnb_core {__version__}[/]")
    lines = facts()
    lines.add_row("Python", f"{platform.python_version()} ({platform.python_implementation()})")
    lines.add_row("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    lines.add_row("platform", f"{platform.platform()}, {platform.machine()}")
    lines.add_row("devices", ", ".join(available_devices()))
    lines.add_row("packages", _packages())
    for name in SETTINGS:
        if name in os.environ:
            lines.add_row(name, Text(os.environ[name], "yellow"))
    out.print(lines)


def _packages() -> Text:
    """The related packages with their versions; those that are not installed at the end."""
    versions = {name: _version(name) for name in RELATED}
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    missing = ", ".join(name for name, version in versions.items() if not version)
    return Text.assemble(found, ("; not installed: " if found else "not installed: ", "dim"), (missing, "dim"))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _backends() -> Table:
    found = table("Backends")
    for column in ("backend", "status", "kernels", "where it comes from, or why it is not there"):
        found.add_column(column, justify="right" if column == "kernels" else "left", overflow="fold")
    for record in backends():
        status = Text(record.status, _COLOURS[record.status])
        found.add_row(record.name, status, str(len(record.kernels) or ""), Text(record.reason or record.source))
    return found


def _kernels() -> Table:
    """First choices of this machine: native, composed of other operators, or the reference, which is dimmed."""
    here = available_devices()
    found = table("First kernel of each operator, by device")
    found.add_column("operator", no_wrap=True)
    columns = [*here, *(device for device in devices() if device not in here)]
    for device in columns:
        found.add_column(device if device in here else f"{device}\n[dim]not here[/]")
    for op in OPS:
        first = [next(k for k in kernels_for(op, device) if k.unavailable is None) for device in columns]
        found.add_row(op, *(Text(kernel.name, _style(kernel)) for kernel in first))
    return found


def _style(kernel: Kernel) -> str:
    return "green" if kernel.is_native else "dim" if kernel.is_reference else "yellow"
