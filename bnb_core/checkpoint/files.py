"""The safetensors format, read and written in pieces: 8 bytes of header length, a JSON header, the tensors' bytes.

Tensors stand without holes. They are ordered by falling item size, so that each begins at a multiple of its own.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch

from bnb_core.ops_registry.checks import ceil_div

__all__ = ["DTYPES", "CheckpointError", "ShardReader", "ShardWriter", "TensorInfo", "load_json"]

# Item sizes in bytes of the format's dtypes; those with a torch dtype here can be quantized or written.
ITEM_SIZES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_MAX_HEADER = 100_000_000  # the format's own limit
_COPY_BYTES = 16 * 2**20


class CheckpointError(Exception):
    """A checkpoint that cannot be read or written, said in one sentence."""


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a header; `begin` and `end` count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a JSON {type(found).__name__}, expected an object")
    return found


class ShardReader:
    """One safetensors file. `tensors` is its header in the order of the data; the data is read on demand.

    Raises CheckpointError for a file that is missing, truncated or not in the format, with the numbers that disagree.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb")
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist") from None
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self.tensors = self._read_header()
        except CheckpointError:
            self._file.close()
            raise

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _read_header(self) -> dict[str, TensorInfo]:
        length = int.from_bytes(self._file.read(8), "little")
        if self.size < 8 or length > min(self.size - 8, _MAX_HEADER):
            raise CheckpointError(
                f"{self.path} is truncated or no safetensors file: it has {self.size:,} bytes, "
                f"its first 8 announce a header of {length:,}"
            )
        self._data = 8 + length
        try:
            header = json.loads(self._file.read(length))
            infos = [_info(name, entry) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.path} has a broken safetensors header: {error}") from None
        infos.sort(key=lambda info: (info.begin, info.end))
        for info in infos:
            if info.nbytes != info.numel * ITEM_SIZES.get(info.dtype, 0) and info.dtype in ITEM_SIZES:
                raise CheckpointError(
                    f"{self.path}: {info.name} has {info.nbytes:,} bytes, its dtype {info.dtype} and shape "
                    f"{list(info.shape)} need {info.numel * ITEM_SIZES[info.dtype]:,}"
                )
        end = max((info.end for info in infos), default=0)
        if self._data + end > self.size:
            raise CheckpointError(
                f"{self.path} is truncated: it has {self.size:,} bytes, its header needs {self._data + end:,}"
            )
        return {info.name: info for info in infos}

    def read(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of the flattened tensor, in memory of their own."""
        size, dtype = ITEM_SIZES[info.dtype], DTYPES[info.dtype]
        if start == stop:
            return torch.empty(0, dtype=dtype)
        buffer = bytearray((stop - start) * size)
        self._file.seek(self._data + info.begin + start * size)
        self._read_into(buffer)
        return torch.frombuffer(buffer, dtype=dtype)

    def pieces(self, info: TensorInfo) -> Iterator[bytearray]:
        """The bytes of a tensor of any dtype, a few MB at a time."""
        self._file.seek(self._data + info.begin)
        for start in range(0, info.nbytes, _COPY_BYTES):
            buffer = bytearray(min(_COPY_BYTES, info.nbytes - start))
            self._read_into(buffer)
            yield buffer

    def _read_into(self, buffer: bytearray) -> None:
        if self._file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise CheckpointError(f"{self.path} became shorter while it was read")


def _info(name: str, entry: Mapping[str, Any]) -> TensorInfo:
    begin, end = (int(n) for n in entry["data_offsets"])
    shape = tuple(int(n) for n in entry["shape"])
    if not 0 <= begin <= end or any(n < 0 for n in shape):
        raise ValueError(f"{name} has offsets {begin} to {end} and shape {list(shape)}")
    return TensorInfo(name, str(entry["dtype"]), shape, begin, end)


class ShardWriter:
    """Writes one safetensors file whose layout is known beforehand; its tensors come in any order and in pieces.

    planned: name → (dtype, shape, bytes).
    blobs: name → largest length of a uint8 tensor whose length is known only when it is written; these stand last.

    The header is written by `close()` into the room kept for it, so that a file without a header is an unfinished one.
    """

    def __init__(
        self, path: Path, planned: Mapping[str, tuple[str, Sequence[int], int]], blobs: Mapping[str, int]
    ) -> None:
        self._slots: dict[str, TensorInfo] = {}
        self._blob_room = dict(blobs)
        self._blobs: dict[str, bytes] = {}
        end = 0
        # Unknown (sub-byte) dtypes count as one byte each: they need no alignment.
        for name, (dtype, shape, nbytes) in sorted(planned.items(), key=lambda p: -ITEM_SIZES.get(p[1][0], 1)):
            self._slots[name] = TensorInfo(name, dtype, tuple(shape), end, end + nbytes)
            end += nbytes
        self._end = end
        self._header = len(_header([*self._slots.values(), *_follow(end, self._blob_room)]))
        self._file: BinaryIO = path.open("wb")
        self._file.truncate(8 + self._header + end)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
        self._file.close()

    @property
    def data_bytes(self) -> int:
        """Bytes of the tensors written, without the header."""
        return self._end + sum(map(len, self._blobs.values()))

    def write(self, name: str, data: torch.Tensor | bytes | bytearray, at: int = 0) -> None:
        """Writes a piece of a tensor, `at` bytes from the tensor's beginning."""
        info = self._slots[name]
        view = _bytes_of(data)
        assert at + len(view) <= info.nbytes, f"{name}: {at + len(view)} bytes do not fit into {info.nbytes}"
        self._file.seek(8 + self._header + info.begin + at)
        self._file.write(view)

    def write_blob(self, name: str, data: bytes) -> None:
        """Sets a tensor of `blobs`; it is written by `close()`."""
        assert len(data) <= self._blob_room[name], f"{name}: {len(data)} bytes, planned were {self._blob_room[name]}"
        self._blobs[name] = data

    def close(self) -> None:
        """Writes the blobs and the header, and waits until the disk has them."""
        infos = [*self._slots.values(), *_follow(self._end, {name: len(data) for name, data in self._blobs.items()})]
        self._file.seek(8 + self._header + self._end)
        self._file.writelines(self._blobs.values())
        header = _header(infos)
        assert len(header) <= self._header, f"the header grew from {self._header} to {len(header)} bytes"
        self._file.seek(0)
        self._file.write(self._header.to_bytes(8, "little") + header.ljust(self._header))
        self._file.flush()
        os.fsync(self._file.fileno())


def _follow(begin: int, lengths: Mapping[str, int]) -> Iterator[TensorInfo]:
    for name, length in lengths.items():
        yield TensorInfo(name, "U8", (length,), begin, begin + length)
        begin += length


def _header(infos: Sequence[TensorInfo]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for info in infos:
        entries[info.name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": (info.begin, info.end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text.ljust(ceil_div(len(text), 8) * 8)


def _bytes_of(data: torch.Tensor | bytes | bytearray) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy; valid while the tensor lives."""
    if not isinstance(data, torch.Tensor):
        return memoryview(data)
    assert data.is_contiguous()
    assert data.device.type == "cpu"
    if not data.numel():
        return memoryview(b"")
    return memoryview((ctypes.c_char * data.nbytes).from_address(data.data_ptr())).cast("B")
