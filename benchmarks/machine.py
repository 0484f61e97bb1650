"""What a result has to be read with: the machine, the versions, the settings."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import bnb_core

from .peers import versions

__all__ = ["facts_of_run", "load"]


def facts_of_run() -> dict[str, Any]:
    """Machine, versions and threads, for the head of a report."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch sees": torch.backends.cpu.get_cpu_capability(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {"bnb_core": bnb_core.__version__, **versions()},
    }


def load() -> float | None:
    """Processes that wanted a core in the last minute, where the system tells: above 1, something else ran too."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return next(named, platform.machine())
