"""Up to how many rows the native gemm_4bit is faster than decoding the whole weight: what its limit is to be set to.

    python -m benchmarks.rows [--device cuda] [--rounds 20] [--shape N,K ...] [--rows M ...]

NF4 in blocks of 64 and bf16, microseconds beside torch's product of weights in bf16. The native kernels of NVIDIA GPUs
are called beyond their limit (`MOST_ROWS_OF_TENSOR_CORES` in backends/cuda/fourbit.py), and the last line says what it
were to be on this device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from bnb_core.backends.cuda import fourbit

from .gpu import Work, contestants, count, here, measured, ops

SHAPES = ((1024, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
ROWS = (1, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def shape(text: str) -> tuple[int, int]:
    """Rows and columns of a weight."""
    rows, columns = (count(part) for part in text.split(","))
    return rows, columns


def crossing(times: dict[int, dict[str, float]], ours: str) -> int:
    """The most rows up to which `ours` is never slower than the composed kernel; 0 where it is from the first on."""
    most = 0
    for rows, found in sorted(times.items()):
        if found.get(ours, float("inf")) > found["composed"]:
            break
        most = rows
    return most


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", type=here, default="cuda")
    parser.add_argument("--rounds", type=count, default=20)
    parser.add_argument("--shape", type=shape, nargs="+", default=SHAPES, metavar="N,K", help="of weights")
    parser.add_argument("--rows", type=count, nargs="+", default=ROWS, metavar="M", help="of A")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    crossings: dict[str, list[int]] = {}
    for N, K in options.shape:
        weight = torch.randn(N, K, dtype=torch.bfloat16, device=options.device)
        packed, scales = ops.quantize_4bit(weight, 64, "nf4", torch.uint8)
        times = {}
        for rows in options.rows:
            x = torch.randn(rows, K, dtype=torch.bfloat16, device=options.device)
            product = {"torch bf16": partial(torch.nn.functional.linear, x, weight)}
            work = Work(f"{rows} rows", "gemm_4bit", (x, packed, (N, K), scales, 64, "nf4"), product)
            with patch.object(fourbit, "_most_rows_of_tensor_cores", lambda _: sys.maxsize):
                calls = {name: call for name, call in contestants(work, options.device).items() if name != "copy"}
                times[rows] = measured(calls, options.device, options.rounds)
        names = list(dict.fromkeys(name for found in times.values() for name in found))
        table = Table(f"{N} x {K}", *names)
        for rows, found in times.items():
            table.add_row(f"{rows} rows", *(f"{found[name]:.1f}" if name in found else "" for name in names))
        console.print(table)
        for name in names:
            if name not in ("composed", "torch bf16"):
                crossings.setdefault(name, []).append(crossing(times, name))
    found_most = ", ".join(f"{name} {min(most)}" for name, most in crossings.items())
    console.print(f"not slower than composed, for all shapes, up to rows: {found_most}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
