"""Finds the fastest tiles of each kernel on the GPU at hand, and writes them to a table.

    python -m bnb_core.backends.triton.tune [--device DEVICE] [--output FILE] [--size N] [KERNEL...]

Every choice is compiled and timed, some minutes in all. With no FILE, the one that BNB_CORE_TRITON_TILES names is
written, or the package's own `tiles.json`. Without `--size`, weights are 4096 x 4096.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from bnb_core.ops_registry import available_devices
from bnb_core.ops_registry.codebooks import dynamic_map
from bnb_core.ops_registry.formats import GNORM_HISTORY

from . import blockwise, fourbit, int8, optimizer
from . import statistics as norms
from .tiles import OWN, VARIABLE, Rung, Table, architecture, fixed, read

Call = Callable[[], object]

WARPS = (4, 8)
STAGES = (2, 3, 4)
ELEMENTS = {"SIZE": (512, 1024, 2048, 4096), "num_warps": WARPS}
PRODUCT = {"COLUMNS": (32, 64, 128), "DEPTH": (64, 128), "num_warps": WARPS, "num_stages": STAGES}

ROUNDS = 10
CACHE = 2**28  # bytes, more than any GPU keeps near


@dataclass(frozen=True)
class Problem:
    """What a kernel is timed on, and among which tiles it is chosen.

    rows: the rung of the table. instead: what is done where the kernel is not taken.
    """

    kernel: str
    choices: dict[str, tuple[int, ...]]
    call: Call
    rows: int | None = None
    instead: Call | None = None


def problems(device: torch.device, size: int) -> Iterator[Problem]:
    """All of them, with weights of `size` squared."""
    bf16, uint8 = torch.bfloat16, torch.uint8
    code, unsigned = (dynamic_map(signed=signed).to(device) for signed in (True, False))
    weight = torch.randn(size, size, dtype=bf16, device=device)
    codes, absmax = blockwise.quantize_blockwise(weight, code, 256)
    packed, scales = fourbit.quantize_4bit(weight, 64, "nf4", uint8)
    shape = size, size
    decode = partial(fourbit.dequantize_4bit, packed, scales, 64, "nf4", shape, bf16)

    yield Problem("blockwise.quantize", ELEMENTS, partial(blockwise.quantize_blockwise, weight, code, 256))
    yield Problem(
        "blockwise.dequantize", ELEMENTS, partial(blockwise.dequantize_blockwise, codes, absmax, code, 256, bf16)
    )
    yield Problem("fourbit.quantize", ELEMENTS, partial(fourbit.quantize_4bit, weight, 64, "nf4", uint8))
    yield Problem("fourbit.dequantize", ELEMENTS, decode)
    one_row = {"ROWS": (1,), "COLUMNS": (1, 2, 4, 8, 16), "DEPTH": (256, 512, 1024), "num_warps": (1, 2, 4, 8)}
    for rows, tall in {1: (1,), 16: (16,), 64: (32, 64), 256: (64, 128)}.items():
        x = torch.randn(rows, size, dtype=bf16, device=device)
        yield Problem(
            "fourbit.gemm",
            one_row if rows == 1 else {"ROWS": tall, **PRODUCT},
            partial(fourbit.gemm_4bit, x, packed, shape, scales, 64, "nf4"),
            rows,
            partial(_decoded_product, x, decode),
        )
    # Twice the weight, in eight parts.
    experts = 8, size // 4, size
    for rows, tall in {16: (16,), 256: (32, 64, 128)}.items():
        x = torch.randn(8 * rows, size, dtype=bf16, device=device)
        ends = torch.arange(1, 9, dtype=torch.int32, device=device) * rows
        args = x, packed.repeat(2, 1), experts, scales.repeat(2), 64, "nf4", ends
        yield Problem(
            "fourbit.grouped_gemm", {"ROWS": tall, **PRODUCT}, partial(fourbit.grouped_gemm_4bit, *args), rows
        )
    indices = torch.randint(size, (size // 4,), device=device)
    yield Problem(
        "fourbit.embed", ELEMENTS, partial(fourbit.embedding_4bit, indices, packed, shape, scales, 64, "nf4", bf16)
    )

    wide = {"ROWS": (1, 2, 4), "COLUMNS": (512, 1024, 2048, 4096), "num_warps": WARPS}
    square = {"ROWS": (16, 32, 64), "COLUMNS": (32, 64, 128), "num_warps": WARPS}
    q, stats, _ = int8.int8_vectorwise_quant(weight)
    sums = torch.ones(shape, dtype=torch.int32, device=device)
    yield Problem("int8.quantize_rows", wide, partial(int8.int8_vectorwise_quant, weight))
    yield Problem("int8.quantize_columns", square, partial(int8.int8_double_quant, weight))
    yield Problem("int8.dequantize", ELEMENTS, partial(int8.int8_vectorwise_dequant, q, stats))
    yield Problem("int8.scale", wide, partial(int8.int8_mm_dequant, sums, stats, stats))
    for rows, tall in {16: (16,), 64: (32, 64), 1024: (64, 128)}.items():
        choices = {"ROWS": tall, **PRODUCT, "DEPTH": (64, 128, 256)}
        yield Problem("int8.multiply", choices, partial(int8.int8_mm, q[:rows], q), rows)

    p, g = weight.float(), torch.randn(shape, device=device)
    m, v, lowered = torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(codes)
    betas, rate = (0.9, 0.999, 0.0, 0.0, 1e-8), (1, 1e-3)
    plain = ("adam", g, p, m, v, None, 0.0, 0.0, *betas, 0.0, *rate, 1.0)
    maps = code, unsigned, absmax.clone(), torch.zeros_like(absmax)
    coded = ("adam", g, p, codes.clone(), lowered, *betas, *rate, *maps, 0.0, 1.0)
    blocks = {"ROWS": (2, 4, 8, 16), "num_warps": WARPS}
    yield Problem("optimizer.plain", ELEMENTS, partial(optimizer.optimizer_update_32bit, *plain))
    yield Problem("optimizer.coded", blocks, partial(optimizer.optimizer_update_8bit_blockwise, *coded))
    history = torch.ones(GNORM_HISTORY, device=device)
    yield Problem("statistics.squares", ELEMENTS, partial(norms.percentile_clipping, g, history, 1))


def _decoded_product(x: torch.Tensor, decode: Callable[[], torch.Tensor]) -> torch.Tensor:
    return x @ decode().t()


def seconds(call: Call, device: torch.device, rounds: int = ROUNDS) -> float:
    """The median of calls, each with nothing of it left in the caches."""
    call()
    module = None if device.type == "cpu" else torch.get_device_module(device.type)
    cache = None if module is None else torch.empty(CACHE, dtype=torch.uint8, device=device)
    found = []
    for _ in range(rounds):
        if module is None or cache is None:
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
            continue
        cache.zero_()
        before, after = (module.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        module.synchronize()
        found.append(before.elapsed_time(after) / 1e3)
    return statistics.median(found)


def best(problem: Problem, device: torch.device, rounds: int = ROUNDS) -> tuple[float, Rung]:
    """The fastest of the choices, and its seconds; inf where the GPU takes none of them."""
    least, chosen = float("inf"), {}
    for values in itertools.product(*problem.choices.values()):
        rung = dict(zip(problem.choices, values, strict=True))
        try:
            with fixed(problem.kernel, rung):
                found = seconds(problem.call, device, rounds)
        except (OutOfResources, CompilationError):
            continue
        if found < least:
            least, chosen = found, rung
    return least, chosen


def tuned(device: torch.device, size: int, kernels: Sequence[str] = (), rounds: int = ROUNDS) -> dict[str, list[Rung]]:
    """The rungs of each kernel, said as they are found."""
    found: dict[str, list[Rung]] = {}
    for problem in problems(device, size):
        if kernels and problem.kernel not in kernels:
            continue
        took, rung = best(problem, device, rounds)
        rungs = found.setdefault(problem.kernel, [])
        name = f"{problem.kernel}{f' {problem.rows} rows' if problem.rows else ''}"
        if problem.instead and seconds(problem.instead, device, rounds) < took:
            print(f"{name}: faster without")
            continue
        print(f"{name}: {took * 1e6:.1f} us with {rung}")
        if rung:
            rungs.append(rung if problem.rows is None else {"rows": problem.rows, **rung})
    for kernel, rungs in found.items():
        # Where nothing else is there for more rows, the last one is for them too.
        if rungs and kernel != "fourbit.gemm":
            rungs[-1].pop("rows", None)
    return {kernel: rungs for kernel, rungs in found.items() if rungs}


def written(table: Table) -> str:
    """A table as text, a line for each rung."""
    architectures = []
    for name, kernels in sorted(table.items(), key=lambda item: (item[0] != "any", item[0])):
        lists = [
            f"    {json.dumps(kernel)}: [\n" + ",\n".join(f"      {json.dumps(rung)}" for rung in rungs) + "\n    ]"
            for kernel, rungs in kernels.items()
        ]
        architectures.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lists) + "\n  }")
    return "{\n" + ",\n".join(architectures) + "\n}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bnb_core.backends.triton.tune", description=description)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--output", type=Path, default=Path(os.environ.get(VARIABLE) or OWN), metavar="FILE")
    parser.add_argument("--size", type=int, default=4096, metavar="N", help="rows and columns of the weights")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="calls that are timed")
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help="only these, such as fourbit.gemm")
    options = parser.parse_args(arguments)
    if options.device.type not in available_devices():
        parser.error(f"device {options.device} is not available; there is {', '.join(available_devices())}")
    if min(options.size, options.rounds) < 1:
        parser.error("--size and --rounds are at least 1")
    known = read(OWN)["any"]
    if unknown := [kernel for kernel in options.kernels if kernel not in known]:
        parser.error(f"no kernel {', '.join(unknown)}, expected some of {', '.join(known)}")
    try:
        table = read(options.output) if options.output.exists() else {}
    except ValueError as error:
        parser.error(str(error))
    found = tuned(options.device, options.size, options.kernels, options.rounds)
    arch = architecture(options.device)
    table[arch] = table.get(arch, {}) | found
    options.output.write_text(written(table), encoding="utf-8")
    print(f"{options.output}: {len(found)} kernels of {arch}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
