"""Calls on more than 2^31 elements, of which the parts that a 32-bit index would miss are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

__all__ = ["LARGE", "Large"]

BLOCK = 4096
COUNT = 2**31 + 3 * BLOCK + 5  # elements: the tail is a short block
# The start, where an int32 index would turn negative, where it would come round to the start again, and the end.
WINDOWS = (slice(0, BLOCK), slice(2**31 - BLOCK, 2**31 + BLOCK), slice(2**31 + 3 * BLOCK, COUNT))
ROWS, COLUMNS = 2**16 + 1, 2**15 + 64  # of a matrix with more than 2^31 elements
LAST = slice(ROWS - 2, ROWS)

Parts = list[tuple[list[Tensor], list[Any]]]


@dataclass(frozen=True)
class Large:
    """A call. gigabytes: what it writes. args: makes the arguments on a device. parts: from the arguments, the results
    and the reference, parts of the results, and what the reference makes of those parts of the arguments.
    """

    op: str
    dtype: str
    gigabytes: float
    args: Callable[[str], tuple[Any, ...]]
    parts: Callable[[tuple[Any, ...], Any, Callable[..., list[Any]]], Parts]


def _zeros(device: str, *shape: int, dtype: torch.dtype) -> Tensor:
    """On the CPU zeros that cost no memory where nothing is written, as numpy leaves them to the system."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = numpy.zeros(torch.Size(shape).numel() * dtype.itemsize, numpy.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _filled(tensor: Tensor) -> Tensor:
    """The same with random values in the windows of its flattened form."""
    for i, window in enumerate(WINDOWS):
        part = tensor.view(-1)[window]
        values = _random(31 + i, *part.shape)
        part.copy_(values if part.is_floating_point() else values.mul(40).abs().clamp(max=126))
    return tensor


def _last_filled(matrix: Tensor) -> Tensor:
    matrix[LAST] = (_random(34, 2, matrix.shape[1]) * 30).clamp(-127, 127).to(matrix.dtype).to(matrix.device)
    return matrix


def _bytes(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def _packed(device: str) -> Tensor:
    flat = _zeros(device, -(-COUNT // 2), dtype=torch.uint8)
    for i, window in enumerate(WINDOWS):
        part = flat[_halves(window)]
        part.copy_(_bytes(33 + i, *part.shape))
    return flat.view(-1, 1)


def _packed_matrix(device: str) -> Tensor:
    matrix = _zeros(device, ROWS, COLUMNS // 2, dtype=torch.uint8)
    matrix[LAST] = _bytes(35, 2, COLUMNS // 2).to(device)
    return matrix.view(-1, 1)


def _last_rows(packed: Tensor) -> Tensor:
    return packed[-COLUMNS:].clone()


def _scales(device: str, count: int, size: int = BLOCK) -> Tensor:
    return (torch.rand(-(-count // size), generator=torch.Generator().manual_seed(32)) + 0.5).to(device)


def _last_scales(scales: Tensor) -> Tensor:
    return scales[-2 * COLUMNS // 64 :].clone()


def _code(device: str) -> Tensor:
    return torch.linspace(-1, 1, 256).to(device)


def _blocks(window: slice) -> slice:
    return slice(window.start // BLOCK, -(-window.stop // BLOCK))


def _halves(window: slice) -> slice:
    return slice(window.start // 2, -(-window.stop // 2))


LARGE = (
    Large(
        *("quantize_blockwise", "bfloat16", 2.2),
        lambda device: (_filled(_zeros(device, COUNT, dtype=torch.bfloat16)), _code(device), BLOCK),
        lambda args, got, reference: [
            ([got[0][w], got[1][_blocks(w)]], reference(args[0][w].clone(), *args[1:])) for w in WINDOWS
        ],
    ),
    Large(
        *("dequantize_blockwise", "bfloat16", 4.4),
        lambda device: (
            *(_filled(_zeros(device, COUNT, dtype=torch.uint8)), _scales(device, COUNT)),
            *(_code(device), BLOCK, torch.bfloat16),
        ),
        lambda args, got, reference: [
            ([got[w]], reference(args[0][w].clone(), args[1][_blocks(w)], *args[2:])) for w in WINDOWS
        ],
    ),
    Large(
        *("quantize_4bit", "bfloat16", 1.2),
        lambda device: (_filled(_zeros(device, COUNT, dtype=torch.bfloat16)), BLOCK, "nf4", torch.uint8),
        lambda args, got, reference: [
            ([got[0][_halves(w)], got[1][_blocks(w)]], reference(args[0][w].clone(), *args[1:])) for w in WINDOWS
        ],
    ),
    Large(
        *("dequantize_4bit", "bfloat16", 4.4),
        lambda device: (_packed(device), _scales(device, COUNT), BLOCK, "nf4", (COUNT,), torch.bfloat16),
        lambda args, got, reference: [
            (
                [got[w]],
                reference(
                    *(args[0][_halves(w)], args[1][_blocks(w)], BLOCK, "nf4", (w.stop - w.start,), torch.bfloat16)
                ),
            )
            for w in WINDOWS
        ],
    ),
    Large(
        *("gemm_4bit", "float32", 0.3),
        lambda device: (
            *(_random(36, 1, COLUMNS).to(device), _packed_matrix(device), (ROWS, COLUMNS)),
            *(_scales(device, ROWS * COLUMNS, 64), 64, "nf4"),
        ),
        lambda args, got, reference: [
            (
                [got[:, LAST]],
                reference(args[0], _last_rows(args[1]), (2, COLUMNS), _last_scales(args[3]), 64, "nf4"),
            )
        ],
    ),
    Large(
        *("embedding_4bit", "float32", 0.3),
        lambda device: (
            *(torch.tensor([ROWS - 2, ROWS - 1]).to(device), _packed_matrix(device), (ROWS, COLUMNS)),
            *(_scales(device, ROWS * COLUMNS, 64), 64, "nf4", torch.float32),
        ),
        lambda args, got, reference: [
            (
                [got],
                reference(
                    *(args[0] - (ROWS - 2), _last_rows(args[1]), (2, COLUMNS), _last_scales(args[3])),
                    *(64, "nf4", torch.float32),
                ),
            )
        ],
    ),
    Large(
        *("int8_vectorwise_quant", "float16", 2.2),
        lambda device: (_last_filled(_zeros(device, ROWS, COLUMNS, dtype=torch.float16)), 0.0),
        lambda args, got, reference: [([got[0][LAST], got[1][LAST]], reference(args[0][LAST].clone(), 0.0)[:2])],
    ),
    Large(
        *("int8_mm", "int8", 0.1),
        lambda device: (
            _random(36, 1, COLUMNS).mul(20).to(torch.int8).to(device),
            _last_filled(_zeros(device, ROWS, COLUMNS, dtype=torch.int8)),
        ),
        lambda args, got, reference: [([got[:, LAST].clone()], reference(args[0], args[1][LAST].clone()))],
    ),
)
