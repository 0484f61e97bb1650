"""`bnb-core check`: do training and the quantized layers work here, and do they do what the reference says?"""

from __future__ import annotations

import argparse

from rich.text import Text

from bnb_core.conformance import ScenarioTrial, end_to_end
from bnb_core.ops_registry import available_devices

from .console import console

__all__ = ["TRIALS", "add_arguments", "check_device", "run"]

# Of the scenarios of the conformance run, those that show in seconds whether the library works at all; in short.
TRIALS = {
    "Linear4bit nf4 float32, forward": "Linear4bit",
    "Linear8bitLt float16, forward": "Linear8bitLt",
    "adam, 32-bit state": "32-bit Adam",
    "adam, 8-bit state": "8-bit Adam",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`check` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """One line per device; status 1 where any failed."""
    out = console()
    failed = []
    for device in available_devices():
        trials = check_device(device)
        failures = [trial.failure for trial in trials if trial.failure is not None]
        kernels = dict.fromkeys(kernel.partition(": ")[2] for trial in trials for kernel in trial.kernels)
        ran = f"{', '.join(TRIALS.values())}; kernels: {', '.join(kernels) or 'none'}"
        out.print(Text.assemble(f"{device:<8}", ("failed ", "red") if failures else ("ok ", "green"), ran))
        for failure in failures:
            out.print(Text("\n".join(f"        {failure.case}: {sentence}" for sentence in failure.sentences)))
        failed += [device] if failures else []
    out.print(Text(f"FAILED on {', '.join(failed)}", "bold red") if failed else Text("SUCCESS", "bold green"))
    return 1 if failed else 0


def check_device(device: str) -> list[ScenarioTrial]:
    """Makes every trial on a device."""
    return list(end_to_end(device, names=tuple(TRIALS)))
