"""`bnb-core check`: do training and the quantized layers work here, and do they do what the reference says?"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from rich.text import Text

from bnb_core.nn import Linear4bit, Linear8bitLt
from bnb_core.ops_registry import OPS, FallbackWarning, differences, force, kernel_counts
from bnb_core.optim import Adam

from .console import available_devices, console

__all__ = ["TRIALS", "add_arguments", "check_device", "run"]

ELEMENTS = 4096 + 100  # enough for 8-bit state, with a last block that is not full
ROWS, FEATURES, OUTPUTS = 3, 256, 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`check` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """One line per device; status 1 where any failed."""
    out = console()
    failed = []
    for device in available_devices():
        failures, kernels = check_device(device)
        ran = f"{', '.join(TRIALS)}; kernels: {', '.join(kernels) or 'none'}"
        out.print(Text.assemble(f"{device:<8}", ("failed ", "red") if failures else ("ok ", "green"), ran))
        for failure in failures:
            out.print(Text(f"        {failure}"))
        failed += [device] if failures else []
    out.print(Text(f"FAILED on {', '.join(failed)}", "bold red") if failed else Text("SUCCESS", "bold green"))
    return 1 if failed else 0


def check_device(device: str) -> tuple[list[str], list[str]]:
    """Makes every trial on a device; returns what was wrong, and the kernels that ran."""
    failures, before = [], Counter(kernel_counts())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # the kernel's name says as much
        for name, (op, trial) in TRIALS.items():
            try:
                got = trial(device)
                with force("reference"):
                    want = trial("cpu")
                failures += differences(got, want, OPS[op].tolerance, name)
            except (RuntimeError, AssertionError, TypeError, ValueError) as error:
                failures.append(f"{name}: {error if isinstance(error, _Wrong) else f'{type(error).__name__}: {error}'}")
    ran = Counter(kernel_counts()) - before
    return failures, list(dict.fromkeys(name for _, where, name in ran if where == device))


class _Wrong(AssertionError):
    """What is wrong with a result, without a look at the reference."""


def _step(device: str, bits: int) -> torch.Tensor:
    """A parameter after one step of Adam, on the CPU; it begins with the same numbers on every device."""
    generator = torch.Generator().manual_seed(0)
    start, target = (torch.randn(ELEMENTS, generator=generator) for _ in range(2))
    parameter = torch.nn.Parameter(start.to(device, copy=True))
    optimizer = Adam([parameter], lr=0.01, optim_bits=bits)
    (parameter - target.to(device)).square().sum().backward()
    optimizer.step()
    after = parameter.detach().cpu()
    if torch.equal(after, start):
        raise _Wrong("the parameter did not change")
    return after


def _forward(device: str, make: Callable[[], torch.nn.Linear], dtype: torch.dtype) -> torch.Tensor:
    """What a layer makes of an input, on the CPU; weights and input are the same numbers on every device."""
    generator = torch.Generator().manual_seed(0)
    layer = make()
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    x = torch.randn(ROWS, FEATURES, generator=generator).to(dtype)
    with torch.no_grad():
        return layer.to(device)(x.to(device)).cpu()


# Name → the operator whose tolerance holds, and what is computed on a device.
TRIALS: dict[str, tuple[str, Callable[[str], torch.Tensor]]] = {
    "32-bit Adam": ("optimizer_step_32bit", partial(_step, bits=32)),
    "8-bit Adam": ("optimizer_step_8bit_blockwise", partial(_step, bits=8)),
    "Linear4bit (nf4)": (
        "gemm_4bit",
        partial(_forward, make=lambda: Linear4bit(FEATURES, OUTPUTS, quant_type="nf4"), dtype=torch.float32),
    ),
    "Linear8bitLt": (
        "int8_linear",
        partial(_forward, make=lambda: Linear8bitLt(FEATURES, OUTPUTS, has_fp16_weights=False), dtype=torch.float16),
    ),
}
