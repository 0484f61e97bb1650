"""`bnb-core info`: the versions and settings, the backends, and which kernels run on each device."""

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
from bnb_core.ops_registry import OPS, Kernel, available_devices, backends, devices, kernels_for
from bnb_core.ops_registry.choosing import forced_kernel
from bnb_core.ops_registry.settings import settings

from .console import console, facts, table

__all__ = ["add_arguments", "run"]

RELATED = (
    *("accelerate", "bitsandbytes", "diffusers", "matplotlib", "numpy", "peft"),
    *("rich", "safetensors", "torchao", "transformers", "triton", "trl"),
)
# With what holds where they are not set.
SETTINGS = {"BNB_CORE_FORCE": "nothing", "BNB_CORE_FALLBACK": "warn"}
_COLOURS = {"loaded": "green", "unavailable": "yellow", "failed": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`info` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """Prints it all; imports none of the related packages."""
    out = console()
    _versions(out)
    out.print(_backends())
    out.print(_kernels())
    out.print(_operators())
    return 0


def _versions(out: Console) -> None:
    out.print(f"[bold]bnb_core {__version__}[/]")
    lines = facts()
    lines.add_row("Python", f"{platform.python_version()} ({platform.python_implementation()})")
    lines.add_row("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    lines.add_row("platform", f"{platform.platform()}, {platform.machine()}")
    lines.add_row("devices", ", ".join(available_devices()))
    # What the CPU has, whatever the kernels were built for.
    lines.add_row("cpu", f"torch finds {torch.backends.cpu.get_cpu_capability()}")
    lines.add_row("packages", _packages())
    for name, otherwise in SETTINGS.items():
        value = os.environ.get(name)
        lines.add_row(name, Text(value, "yellow") if value else Text(f"not set: {otherwise}", "dim"))
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
        where = f"{record.source} of {record.package}" if record.package else record.source
        said = f"{record.reason} ({where})" if record.reason else where
        found.add_row(record.name, status, str(len(record.kernels) or ""), Text(said))
    return found


def _kernels() -> Table:
    """Each kernel name of the devices that are here, best first: for how many operators it runs, why not for others.

    As far as that can be said without inputs, which a kernel may refuse.
    """
    found = table("Kernels by device, best first")
    for column in ("device", "kernel", "operators", "runs", "why not, or not for all"):
        found.add_column(column, justify="right" if column in ("operators", "runs") else "left", overflow="fold")
    for device in available_devices():
        first = {op: _first(op, device) for op in OPS}
        rows = {op: kernels_for(op, device) for op in OPS}
        # The reference, which stands last for each operator, would stand before what some of them lack.
        names = sorted({k.name: k for kernels in rows.values() for k in kernels}.values(), key=lambda k: k.is_reference)
        for name in (kernel.name for kernel in names):
            ops = {op: kernel for op, kernels in rows.items() for kernel in kernels if kernel.name == name}
            runs = [op for op, kernel in ops.items() if kernel.name == first[op].name and kernel.unavailable is None]
            reasons = dict.fromkeys(_why_not(ops[op], first[op]) for op in ops if op not in runs)
            style = _style(next(iter(ops.values()))) if runs else "dim"
            counts = (str(len(ops)), str(len(runs) or ""))
            found.add_row(device, Text(name, style), *counts, Text("; ".join(reasons)))
    return found


def _first(op: str, device: str) -> Kernel:
    """What runs, unless it refuses the inputs."""
    return forced_kernel(op, device) or next(k for k in kernels_for(op, device) if k.unavailable is None)


def _why_not(kernel: Kernel, first: Kernel) -> str:
    if kernel.unavailable is not None:
        return kernel.unavailable
    return f"{first.name} {'is forced' if first.name in settings.forced else 'comes first'}"


def _operators() -> Table:
    """First choices of this machine: native, composed of other operators, or the reference, which is dimmed."""
    here = available_devices()
    found = table("First kernel of each operator, by device")
    found.add_column("operator", no_wrap=True)
    columns = [*here, *(device for device in devices() if device not in here)]
    for device in columns:
        found.add_column(device if device in here else f"{device}\n[dim]not here[/]")
    for op in OPS:
        found.add_row(op, *(_cell(_first(op, device)) for device in columns))
    return found


def _cell(first: Kernel) -> Text:
    if first.unavailable is not None:
        return Text(f"none: {first.name} is forced", "red")
    return Text(first.name, _style(first))


def _style(kernel: Kernel) -> str:
    return "green" if kernel.is_native else "dim" if kernel.is_reference else "yellow"
