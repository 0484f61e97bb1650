"""Speed on a GPU, next to a copy of as many bytes, the same work in torch, and bitsandbytes where it is installed.

    python -m benchmarks.gpu [--device cuda] [--size 4096] [--output FILE.json] [WORK...]

All contestants of a work take turns, with the caches emptied before each call, and the median counts. A time is that of
the device between two events, so that what Python does beside it does not show while the device is busy.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bnb_core.cli.console import CommandError, device_of
from bnb_core.ops_registry import force, kernels_for
from bnb_core.ops_registry.cases import tensors
from bnb_core.ops_registry.codebooks import dynamic_map

from .peers import missing

Call = Callable[[], Any]

ops = torch.ops.bnb_core
CACHE = 2**28  # bytes, more than any GPU keeps near
ROWS = (1, 4, 16, 64, 256, 1024, 4096)


@dataclass(frozen=True)
class Work:
    """An operator's call, and what others need for the same.

    others: by the name of the contestant.
    """

    name: str
    op: str
    args: tuple[Any, ...]
    others: Mapping[str, Call]


def works(device: torch.device, size: int) -> Iterator[Work]:
    """Each with weights of `size` squared."""
    peer = None if peer_package(device) is None else torch.ops.bitsandbytes
    bf16 = torch.bfloat16
    weight = torch.randn(size, size, dtype=bf16, device=device)
    code = dynamic_map(device=device)
    for blocksize in (64, 256, 4096):
        q, absmax = ops.quantize_blockwise(weight, code, blocksize)
        yield Work(
            f"quantize_blockwise/{blocksize}",
            *("quantize_blockwise", (weight, code, blocksize)),
            _of(peer, "quantize_blockwise", weight, code, blocksize),
        )
        yield Work(
            f"dequantize_blockwise/{blocksize}",
            *("dequantize_blockwise", (q, absmax, code, blocksize, bf16)),
            _of(peer, "dequantize_blockwise", q, absmax, code, blocksize, bf16),
        )
    uint8 = torch.uint8
    packed, scales = ops.quantize_4bit(weight, 64, "nf4", uint8)
    shape = (size, size)
    yield Work(
        *("quantize_4bit/64", "quantize_4bit", (weight, 64, "nf4", uint8)),
        _of(peer, "quantize_4bit", weight, 64, "nf4", uint8),
    )
    yield Work(
        *("dequantize_4bit/64", "dequantize_4bit", (packed, scales, 64, "nf4", shape, bf16)),
        _of(peer, "dequantize_4bit", packed, scales, 64, "nf4", shape, bf16),
    )
    for rows in ROWS:
        x = torch.randn(rows, size, dtype=bf16, device=device)
        others: dict[str, Call] = {"torch bf16": partial(torch.nn.functional.linear, x, weight)}
        if peer is not None:
            others["bitsandbytes"] = partial(_peer_linear, peer_package(device), x, packed, scales, shape)
        yield Work(f"gemm_4bit/{rows} rows", "gemm_4bit", (x, packed, shape, scales, 64, "nf4"), others)
    q, stats, _ = ops.int8_vectorwise_quant(weight)
    for rows in ROWS:
        x = torch.randn(rows, size, dtype=bf16, device=device)
        bf16_product = {"torch bf16": partial(torch.nn.functional.linear, x, weight)}
        yield Work(f"int8_linear/{rows} rows", "int8_linear", (x, q, stats), bf16_product)
    half = weight.half()
    yield Work(*("int8_vectorwise_quant", "int8_vectorwise_quant", (half,)), _of(peer, "int8_vectorwise_quant", half))
    p, g = torch.randn(shape, device=device), torch.randn(shape, device=device)
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    unsigned = dynamic_map(signed=False, device=device)
    blocks = math.ceil(p.numel() / 256)
    codes = [torch.zeros(shape, dtype=uint8, device=device) for _ in range(2)]
    absmax = [torch.zeros(blocks, device=device) for _ in range(2)]
    step, lr = torch.tensor(2.0, device=device), torch.tensor(1e-3, device=device)
    betas = (0.9, 0.999, 0.0, 0.0, 1e-8)
    fused = torch.optim.AdamW([p.clone().requires_grad_()], fused=device.type != "cpu")
    fused.param_groups[0]["params"][0].grad = g.clone()
    yield Work(
        *("adamw, 8-bit blockwise", "optimizer_step_8bit_blockwise"),
        (
            *("adam", [g], [p.clone()], [codes[0]], [codes[1]], code, unsigned, [absmax[0]], [absmax[1]]),
            *(step, lr, *betas, 0.01, 1.0),
        ),
        {"torch fused fp32": fused.step},
    )
    yield Work(
        *("adamw, 32-bit", "optimizer_step_32bit"),
        ("adam", [g], [p.clone()], [m], [v], None, step, lr, 0.0, *betas, 0.01, 1.0),
        {"torch fused fp32": fused.step},
    )


def peer_package(device: torch.device) -> Any:
    """bitsandbytes, where it is installed and has kernels for this device; None where not."""
    if device.type != "cuda" or missing("bitsandbytes", ["bitsandbytes"]) is not None:
        return None
    return importlib.import_module("bitsandbytes")


def _of(peer: Any, op: str, *args: Any) -> dict[str, Call]:
    return {} if peer is None else {"bitsandbytes": partial(getattr(peer, op), *args)}


def _peer_linear(peer: Any, x: Tensor, packed: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """As its layer does it."""
    code = peer.functional.get_4bit_type("nf4", device=x.device)
    state = peer.functional.QuantState(
        scales, shape=torch.Size(shape), dtype=x.dtype, blocksize=64, quant_type="nf4", code=code
    )
    return peer.matmul_4bit(x, packed.t(), state)


def contestants(work: Work, device: torch.device) -> dict[str, Call]:
    """The kernels of the operator, what the others have, and a copy of as many bytes as ours reads and writes."""
    called = getattr(ops, work.op).default
    found: dict[str, Call] = {}
    for row in kernels_for(work.op, device.type):
        if row.unavailable is None and row.refuses(work.args) is None and not row.is_reference:
            found[row.name] = partial(_forced, row.name, called, work.args)
    outcome = called(*work.args)
    moved = sum(tensor.nbytes for tensor in tensors([work.args, outcome]))
    if work.op.startswith("optimizer"):  # parameters and state are read and written
        moved = sum(t.nbytes * (1 if i == 0 else 2) for i, t in enumerate(tensors(work.args)) if t.numel() > 256)
    source = torch.ones(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return found | dict(work.others) | {"copy": lambda: target.copy_(source)}


def _forced(kernel: str, called: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    with force(kernel):
        return called(*args)


def measured(calls: dict[str, Call], device: torch.device, rounds: int) -> dict[str, float]:
    """Microseconds of each, medians of interleaved rounds."""
    module = None if device.type == "cpu" else torch.get_device_module(device.type)
    cache = torch.empty(CACHE if module else 1, dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            cache.zero_()
            if module is None:
                start = time.perf_counter()
                calls[name]()
                times[name].append((time.perf_counter() - start) * 1e6)
                continue
            before, after = (module.Event(enable_timing=True) for _ in range(2))
            before.record()
            calls[name]()
            after.record()
            module.synchronize()
            times[name].append(before.elapsed_time(after) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def here(name: str) -> torch.device:
    """The device of an option."""
    try:
        return device_of(name)
    except CommandError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """The number of an option, at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", type=here, default="cuda")
    parser.add_argument("--size", type=count, default=4096, help="rows and columns of weights")
    parser.add_argument("--rounds", type=count, default=20)
    parser.add_argument("--output", type=Path, metavar="FILE", help="the numbers as JSON")
    parser.add_argument("works", nargs="*", metavar="WORK", help="parts of names (all)")
    options = parser.parse_args(arguments)
    found: dict[str, dict[str, float]] = {}
    failure = ""
    try:
        for work in works(options.device, options.size):
            if not options.works or any(part in work.name for part in options.works):
                found[work.name] = {}
                found[work.name] = measured(contestants(work, options.device), options.device, options.rounds)
    except (RuntimeError, KeyboardInterrupt) as error:  # what was measured until then is shown
        failure = f"{next(reversed(found), 'the arguments')}: {type(error).__name__}: {error}"
    if not found and not failure:
        parser.error("no work has that in its name")
    names = list(dict.fromkeys(name for times in found.values() for name in times))
    table = Table("microseconds", *names)
    for work_name, times in found.items():
        table.add_row(work_name, *(f"{times[name]:.1f}" if name in times else "" for name in names))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if options.output is not None:
        numbers = {"device": str(options.device), "size": options.size, "microseconds": found}
        options.output.write_text(json.dumps(numbers, indent=1) + "\n")
    if failure:
        Console(stderr=True).print(f"ended in {failure}", highlight=False, markup=False)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
