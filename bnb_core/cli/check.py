"""`bnb-core check`: does training work here, and does it do what the reference says?"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter

import torch
from rich.text import Text

from bnb_core.ops_registry import OPS, FallbackWarning, differences, force, kernel_counts
from bnb_core.optim import Adam

from .console import available_devices, console

__all__ = ["add_arguments", "check_device", "run"]

ELEMENTS = 4096 + 100  # enough for 8-bit state, with a last block that is not full


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`check` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """One line per device; status 1 where any failed."""
    out = console()
    failed = []
    for device in available_devices():
        failures, kernels = check_device(device)
        ran = f"one step with 32-bit and 8-bit Adam, kernels: {', '.join(kernels) or 'none'}"
        out.print(Text.assemble(f"{device:<8}", ("failed ", "red") if failures else ("ok ", "green"), ran))
        for failure in failures:
            out.print(Text(f"        {failure}"))
        failed += [device] if failures else []
    out.print(Text(f"FAILED on {', '.join(failed)}", "bold red") if failed else Text("SUCCESS", "bold green"))
    return 1 if failed else 0


def check_device(device: str) -> tuple[list[str], list[str]]:
    """Trains one parameter one step on a device with each state; returns what was wrong, and the kernels that ran."""
    failures, before = [], Counter(kernel_counts())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # the kernel's name says as much
        for bits in (32, 8):
            try:
                failures += _compare(device, bits)
            except (RuntimeError, AssertionError, TypeError, ValueError) as error:
                failures.append(f"{bits}-bit Adam: {type(error).__name__}: {error}")
    ran = Counter(kernel_counts()) - before
    return failures, list(dict.fromkeys(name for _, where, name in ran if where == device))


def _compare(device: str, bits: int) -> list[str]:
    got, start = _step(device, bits)
    with force("reference"):
        want, _ = _step("cpu", bits)
    if torch.equal(got, start):
        return [f"{bits}-bit Adam: the parameter did not change"]
    op = OPS["optimizer_step_32bit" if bits == 32 else "optimizer_step_8bit_blockwise"]
    return differences(got, want, op.tolerance, f"{bits}-bit Adam: the parameter")


def _step(device: str, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The parameter after and before one step, on the CPU; the same numbers on every device."""
    generator = torch.Generator().manual_seed(0)
    start, target = (torch.randn(ELEMENTS, generator=generator) for _ in range(2))
    parameter = torch.nn.Parameter(start.to(device, copy=True))
    optimizer = Adam([parameter], lr=0.01, optim_bits=bits)
    (parameter - target.to(device)).square().sum().backward()
    optimizer.step()
    return parameter.detach().cpu(), start
