"""Native kernels on tensors of more than 2^31 elements."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LEVEL
from torch import Tensor

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)
if not sys.platform.startswith("linux"):
    pytest.skip("the tensors are untouched pages of Linux", allow_module_level=True)

from bnb_core.backends.cpu.levels import AVAILABLE
from bnb_core.ops_registry import EXACT, OPS, differences, force, kernels_for


def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros that cost no memory where nothing is written: untouched pages all are the kernel's one page of zeros."""
    count = torch.Size(shape).numel()
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


BLOCK = 4096
COUNT = 2**31 + 3 * BLOCK + 5  # elements: the tail is a short block
# The start, where an int32 index would turn negative, where it would come round to the start again, and the end.
WINDOWS = (slice(0, BLOCK), slice(2**31 - BLOCK, 2**31 + BLOCK), slice(2**31 + 3 * BLOCK, COUNT))
ROWS, COLUMNS = 2**16 + 1, 2**15 + 64  # of a matrix with more than 2^31 elements
LAST = slice(ROWS - 2, ROWS)


def filled(tensor: Tensor) -> Tensor:
    """The same with random values in the windows of its flattened form."""
    flat, generator = tensor.view(-1), torch.Generator().manual_seed(31)
    for window in WINDOWS:
        part = flat[window]
        if part.is_floating_point():
            part.copy_(torch.randn(part.shape, generator=generator))
        else:
            part.copy_(torch.randint(0, 127, part.shape, generator=generator))
    return tensor


def scales(count: int, size: int = BLOCK) -> Tensor:
    return torch.rand(-(-count // size), generator=torch.Generator().manual_seed(32)) + 0.5


def code() -> Tensor:
    return torch.linspace(-1, 1, 256)


@dataclass(frozen=True)
class Large:
    """A call on more than 2^31 elements: `parts` of its results, and the same computed from parts of the arguments."""

    op: str
    gigabytes: float  # that it writes
    args: Callable[[], tuple[Any, ...]]
    compare: Callable[[Any, Callable[..., Any], tuple[Any, ...]], list[tuple[Any, Any]]]


def blocks(window: slice, size: int = BLOCK) -> slice:
    return slice(window.start // size, -(-window.stop // size))


def halves(window: slice) -> slice:
    return slice(window.start // 2, -(-window.stop // 2))


LARGE = (
    Large(
        "quantize_blockwise",
        2.2,
        lambda: (filled(zeros(COUNT, dtype=torch.bfloat16)), code(), BLOCK),
        lambda got, op, args: [
            ((got[0][w], got[1][blocks(w)]), op(args[0][w].clone(), code(), BLOCK)) for w in WINDOWS
        ],
    ),
    Large(
        "dequantize_blockwise",
        4.4,
        lambda: (filled(zeros(COUNT, dtype=torch.uint8)), scales(COUNT), code(), BLOCK, torch.bfloat16),
        lambda got, op, args: [
            (got[w], op(args[0][w].clone(), args[1][blocks(w)], code(), BLOCK, torch.bfloat16)) for w in WINDOWS
        ],
    ),
    Large(
        "quantize_4bit",
        1.2,
        lambda: (filled(zeros(COUNT, dtype=torch.bfloat16)), BLOCK, "nf4", torch.uint8),
        lambda got, op, args: [
            ((got[0][halves(w)], got[1][blocks(w)]), op(args[0][w].clone(), BLOCK, "nf4", torch.uint8)) for w in WINDOWS
        ],
    ),
    Large(
        "dequantize_4bit",
        4.4,
        lambda: (packed(), scales(COUNT), BLOCK, "nf4", (COUNT,), torch.bfloat16),
        lambda got, op, args: [
            (
                got[w],
                op(args[0][halves(w)], args[1][blocks(w)], BLOCK, "nf4", (w.stop - w.start,), torch.bfloat16),
            )
            for w in WINDOWS
        ],
    ),
    Large(
        "gemm_4bit",
        0.3,
        lambda: (activations(torch.float32), packed_matrix(), (ROWS, COLUMNS), matrix_scales(), 64, "nf4"),
        lambda got, op, args: [
            (
                got[:, LAST],
                op(args[0], last_rows(args[1]), (2, COLUMNS), args[3][-2 * COLUMNS // 64 :].clone(), 64, "nf4"),
            )
        ],
    ),
    Large(
        "embedding_4bit",
        0.3,
        lambda: (
            *(torch.tensor([ROWS - 2, ROWS - 1]), packed_matrix(), (ROWS, COLUMNS), matrix_scales()),
            *(64, "nf4", torch.float32),
        ),
        lambda got, op, args: [
            (
                got,
                op(
                    torch.tensor([0, 1]),
                    last_rows(args[1]),
                    (2, COLUMNS),
                    args[3][-2 * COLUMNS // 64 :].clone(),
                    64,
                    "nf4",
                    torch.float32,
                ),
            )
        ],
    ),
    Large(
        "int8_vectorwise_quant",
        2.2,
        lambda: (last_filled(zeros(ROWS, COLUMNS, dtype=torch.float16)), 0.0),
        lambda got, op, args: [((got[0][LAST], got[1][LAST]), op(args[0][LAST].clone(), 0.0)[:2])],
    ),
    Large(
        "int8_mm",
        0.1,
        lambda: (
            activations(torch.float32).mul(20).to(torch.int8),
            last_filled(zeros(ROWS, COLUMNS, dtype=torch.int8)),
        ),
        lambda got, op, args: [(got[:, LAST].clone(), op(args[0], args[1][LAST].clone()))],
    ),
)


def packed() -> Tensor:
    flat = zeros(-(-COUNT // 2), dtype=torch.uint8)
    for window in WINDOWS:
        part = flat[halves(window)]
        part.copy_(torch.randint(0, 256, part.shape, generator=torch.Generator().manual_seed(33)))
    return flat.view(-1, 1)


def last_filled(matrix: Tensor) -> Tensor:
    values = torch.randn(2, matrix.shape[1], generator=torch.Generator().manual_seed(34))
    matrix[LAST] = (values * 30).clamp(-127, 127).to(matrix.dtype)
    return matrix


def packed_matrix() -> Tensor:
    matrix = zeros(ROWS, COLUMNS // 2, dtype=torch.uint8)
    matrix[LAST] = torch.randint(0, 256, (2, COLUMNS // 2), generator=torch.Generator().manual_seed(35)).byte()
    return matrix.view(-1, 1)


def last_rows(matrix: Tensor) -> Tensor:
    return matrix[-COLUMNS:].clone()


def matrix_scales() -> Tensor:
    return scales(ROWS * COLUMNS, 64)


def activations(dtype: torch.dtype) -> Tensor:
    return torch.randn(1, COLUMNS, generator=torch.Generator().manual_seed(36)).to(dtype)


def has_native(op: str) -> bool:
    return any(kernel.is_native for kernel in kernels_for(op, "cpu"))


@pytest.mark.skipif(LEVEL != "full", reason="seconds and gigabytes a case: BNB_CORE_TEST_LEVEL=full")
@pytest.mark.parametrize("level", AVAILABLE)
@pytest.mark.parametrize("large", [pytest.param(case, id=case.op) for case in LARGE if has_native(case.op)])
def test_more_than_two_to_the_31_elements(large: Large, level: str) -> None:
    """What lies beyond is what the reference makes of it alone."""
    needed = int((large.gigabytes + 1.5) * 2**30)
    if available_memory() < needed:
        pytest.skip(f"needs {needed >> 20} MB of memory, {available_memory() >> 20} are free")
    op = getattr(torch.ops.bnb_core, large.op).default
    args = large.args()
    with force(f"cpu/{level}"):
        got = op(*args)
    with force("reference"):
        for part, want in large.compare(got, op, args):
            tolerance = OPS[large.op].tolerance if large.op == "gemm_4bit" else EXACT
            assert not differences(part, want, tolerance)
