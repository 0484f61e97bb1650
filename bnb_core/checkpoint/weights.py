"""One weight of a linear layer: read in pieces, quantized as the layers do it, and compared with what it was.

Blocks (4-bit) and rows (int8) are independent of each other, so pieces of whole blocks or rows give the same bytes as
the whole weight, in memory that does not grow with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from bnb_core.functional.blockwise import with_nested_scales
from bnb_core.functional.fourbit import DEFAULT_4BIT_BLOCKSIZE
from bnb_core.functional.int8 import int8_weight_quant
from bnb_core.functional.tables import get_4bit_type
from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.formats import BLOCKSIZES, NESTED_BLOCKSIZE
from bnb_core.quant_state import QuantState

from .files import DTYPES, CheckpointError, ShardReader, TensorInfo

__all__ = ["BLOCKSIZES", "FLOATS", "FORMATS", "Format", "Layout", "Quantized", "Settings", "Weight", "format_of"]

FORMATS = ("nf4", "fp4", "int8")
FLOATS = ("F32", "F16", "BF16")
_PIECE = 2**20  # elements; a multiple of every block size, even, so that packed bytes never straddle pieces


@dataclass(frozen=True)
class Settings:
    """What to quantize to. Raises CheckpointError for values that do not go together."""

    to: str = "nf4"
    double_quant: bool = False
    blocksize: int = DEFAULT_4BIT_BLOCKSIZE
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise CheckpointError(f"the format is {self.to!r}, expected one of {', '.join(FORMATS)}")
        if self.blocksize not in BLOCKSIZES:
            raise CheckpointError(
                f"the block size is {self.blocksize}, expected one of {', '.join(map(str, BLOCKSIZES))}"
            )
        if self.to == "int8" and (self.double_quant or self.blocksize != DEFAULT_4BIT_BLOCKSIZE):
            raise CheckpointError("int8 has one scale a row: double quantization and block size are for nf4 and fp4")


@dataclass(frozen=True)
class Weight:
    """A 2-D weight in a file; `transposed` where the file holds [in, out] and the layer is [out, in]."""

    reader: ShardReader
    info: TensorInfo
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.info.shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.info.dtype]

    def pieces(self, unit: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        """The flattened weight as (first element, elements), in pieces of a multiple of `unit` elements."""
        step = max(_PIECE // unit, 1) * unit
        count = self.info.numel
        whole = self._transposed_whole() if self.transposed else None
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield start, self.reader.read(self.info, start, stop) if whole is None else whole[start:stop]

    def _transposed_whole(self) -> torch.Tensor:
        stored = self.reader.read(self.info, 0, self.info.numel)
        return stored.view(self.info.shape).t().reshape(-1)


@dataclass
class Quantized:
    """What is stored for a weight, by suffix of the weight's name, and how far it is from the weight.

    relative_error: ‖W - Q‖ / ‖W‖; mean_abs_error: mean |W - Q|; both None for a weight that is not finite.
    """

    tensors: dict[str, torch.Tensor]
    relative_error: float | None
    mean_abs_error: float | None


@dataclass
class _Error:
    """Sums over the pieces of a weight."""

    squares: float = 0.0
    difference_squares: float = 0.0
    difference: float = 0.0
    count: int = 0
    finite: bool = True

    def add(self, piece: torch.Tensor, restored: torch.Tensor) -> None:
        piece = piece.to(torch.float32)
        difference = restored.cpu() - piece
        self.squares += float(torch.linalg.vector_norm(piece)) ** 2
        self.difference_squares += float(torch.linalg.vector_norm(difference)) ** 2
        self.difference += float(difference.abs().sum())
        self.count += piece.numel()

    def of(self, tensors: dict[str, torch.Tensor]) -> Quantized:
        if not math.isfinite(self.squares) or not math.isfinite(self.difference):
            return Quantized(tensors, None, None)
        relative = math.sqrt(self.difference_squares / self.squares) if self.squares else 0.0
        return Quantized(tensors, relative, self.difference / max(self.count, 1))


@dataclass(frozen=True)
class Layout:
    """What a weight is stored as, by the ending of the name: (dtype, shape) of tensors, largest length of JSON ones."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    blobs: dict[str, int]


class Format(Protocol):
    """A way to store the weight of a linear layer. Endings of names follow the module's name and a dot."""

    def layout(self, shape: tuple[int, int], dtype: torch.dtype) -> Layout:
        """What `quantize` will store for a weight of this shape and dtype."""
        ...

    def quantize(self, weight: Weight, device: torch.device) -> Quantized:
        """Quantizes one weight on `device`; the result is on the CPU."""
        ...


@dataclass(frozen=True)
class _FourBit:
    quant_type: str
    blocksize: int
    double_quant: bool

    def layout(self, shape: tuple[int, int], dtype: torch.dtype) -> Layout:
        count = math.prod(shape)
        blocks = ceil_div(count, self.blocksize)
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {
            "weight": ("U8", (ceil_div(count, 2), 1)),
            "weight.absmax": ("U8" if self.double_quant else "F32", (blocks,)),
            "weight.quant_map": ("F32", (16,)),
        }
        if self.double_quant:
            tensors["weight.nested_absmax"] = ("F32", (ceil_div(blocks, NESTED_BLOCKSIZE),))
            tensors["weight.nested_quant_map"] = ("F32", (256,))
        # The offset's digits are not known yet: this one has as many as there can be.
        state = self._state(torch.zeros(0), shape, dtype)
        state.offset = None if state.offset is None else torch.tensor(-1.2345678901234567e-300, dtype=torch.float64)
        json = {f"weight.{key}": value.numel() for key, value in state.as_dict(packed=True).items() if "." in key}
        return Layout(tensors, json)

    def quantize(self, weight: Weight, device: torch.device) -> Quantized:
        packed, scales = [], []
        for _, piece in weight.pieces():
            codes, absmax = torch.ops.bnb_core.quantize_4bit(
                piece.to(device), self.blocksize, self.quant_type, torch.uint8
            )
            packed.append(codes.cpu())
            scales.append(absmax.cpu())
        codes, state = torch.cat(packed), self._state(torch.cat(scales), weight.shape, weight.dtype)
        del packed, scales
        error = _Error()
        restored_scales = state.scales()
        for start, piece in weight.pieces():
            stop = start + piece.numel()
            restored = torch.ops.bnb_core.dequantize_4bit(
                codes[start // 2 : ceil_div(stop, 2)].to(device),
                restored_scales[start // self.blocksize : ceil_div(stop, self.blocksize)].to(device),
                self.blocksize,
                self.quant_type,
                [piece.numel()],
                torch.float32,
            )
            error.add(piece, restored)
        stored = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        return error.of({"weight": codes, **stored})

    def _state(self, absmax: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype) -> QuantState:
        code = get_4bit_type(self.quant_type)
        state = QuantState(absmax, torch.Size(shape), code, self.blocksize, self.quant_type, dtype)
        return with_nested_scales(state, NESTED_BLOCKSIZE) if self.double_quant else state


class _Int8:
    def layout(self, shape: tuple[int, int], dtype: torch.dtype) -> Layout:
        return Layout({"weight": ("I8", shape), "SCB": ("F32", shape[:1]), "weight_format": ("U8", ())}, {})

    def quantize(self, weight: Weight, device: torch.device) -> Quantized:
        columns = weight.shape[1]
        codes, scales, error = torch.empty(weight.shape, dtype=torch.int8), torch.empty(weight.shape[0]), _Error()
        for start, piece in weight.pieces(unit=columns):
            q, absmax = int8_weight_quant(piece.view(-1, columns).to(device))
            error.add(piece, torch.ops.bnb_core.int8_vectorwise_dequant(q, absmax).flatten())
            row = start // columns
            codes[row : row + len(q)].copy_(q)
            scales[row : row + len(q)].copy_(absmax)
        return error.of({"weight": codes, "SCB": scales, "weight_format": torch.zeros((), dtype=torch.uint8)})


def format_of(settings: Settings) -> Format:
    """The format that the settings ask for."""
    if settings.to == "int8":
        return _Int8()
    return _FourBit(settings.to, settings.blocksize, settings.double_quant)
