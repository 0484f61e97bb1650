"""What is needed, beside the codes, to dequantize a tensor; and its form in a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from .ops_registry import QUANT_TYPES
from .ops_registry.checks import ceil_div
from .ops_registry.codebooks import four_bit
from .ops_registry.formats import NESTED_BLOCKSIZE

__all__ = ["PACKED_KEYS", "QuantState", "pack_dict_to_tensor", "unpack_tensor_to_dict"]

_JSON_PREFIX = "bitsandbytes__"
_TENSORS = ("absmax", "quant_map")
_NESTED_KEYS = ("nested_absmax", "nested_quant_map")
_NESTED_VALUES = ("nested_blocksize", "nested_dtype", "nested_offset")
_VALUES = ("quant_type", "blocksize", "dtype", "shape")

# What as_dict(packed=True) may hold, in its order.
PACKED_KEYS = (
    *_TENSORS,
    *_NESTED_KEYS,
    *(f"quant_state.{_JSON_PREFIX}{quant_type}" for quant_type in QUANT_TYPES),
)


def pack_dict_to_tensor(source_dict: Mapping[str, Any]) -> Tensor:
    """A dictionary as JSON bytes in a uint8 tensor on the CPU."""
    return torch.tensor(list(json.dumps(source_dict).encode()), dtype=torch.uint8, device="cpu")


def unpack_tensor_to_dict(tensor_data: Tensor) -> dict[str, Any]:
    """The dictionary whose JSON bytes the uint8 tensor holds. Raises ValueError where they are no such thing."""
    if tensor_data.dtype != torch.uint8:
        raise ValueError(f"JSON bytes are {tensor_data.dtype}, expected torch.uint8")
    result = json.loads(bytes(tensor_data.tolist()))
    if not isinstance(result, dict):
        raise ValueError(f"JSON bytes hold a {type(result).__name__}, expected an object")
    return result


def dequantized_scales(
    absmax: Tensor,
    absmax_8bit: Tensor | None,
    absmax_code: Tensor | None,
    absmax_offset: Tensor | None,
    blocksize: int | None = NESTED_BLOCKSIZE,
) -> Tensor:
    """The fp32 scales of statistics as the operators take them: `absmax` itself, or, nested, those that it is for."""
    if absmax_8bit is None:
        return absmax
    scales = torch.ops.bnb_core.dequantize_blockwise.default(absmax_8bit, absmax, absmax_code, blocksize, torch.float32)
    return scales + absmax_offset


@dataclasses.dataclass(eq=False)
class QuantState:
    """The statistics of a quantized tensor.

    absmax: scales, fp32 `[blocks]`; with nested statistics their uint8 codes. shape: that of the original tensor; None
    for 8-bit blockwise codes, which have it themselves. code: the values of the codes, fp32, `[16]` for 4 bits and
    `[256]` for 8. blocksize: elements to a scale. quant_type: "nf4" or "fp4"; None for 8-bit blockwise. dtype: that of
    the original tensor, and of the dequantized one. offset, state2: with nested statistics (QLoRA, arXiv:2305.14314),
    the fp32 0-dim mean of the scales and the state that dequantizes `absmax` to their differences from it.

    Two states are equal when every field is, tensors compared by dtype, device and value (NaN equals NaN).
    """

    valid_quant_types: ClassVar[tuple[str, ...]] = tuple(sorted(QUANT_TYPES))
    valid_qs_type_keys: ClassVar[list[str]] = [_JSON_PREFIX + quant_type for quant_type in valid_quant_types]
    valid_qs_keys: ClassVar[list[str]] = [*_TENSORS, *_NESTED_KEYS, "quant_state", *_VALUES, *_NESTED_VALUES]

    absmax: Tensor
    shape: torch.Size | None = None
    code: Tensor | None = None
    blocksize: int | None = None
    quant_type: str | None = None
    dtype: torch.dtype | None = None
    offset: Tensor | None = None
    state2: QuantState | None = None

    _off_meta: ClassVar[QuantState | None] = None

    def __post_init__(self) -> None:
        if self.shape is not None:
            self.shape = torch.Size(self.shape)

    @property
    def nested(self) -> bool:
        """True where the scales are quantized too. False can be set once `absmax` has them dequantized."""
        return self.state2 is not None

    @nested.setter
    def nested(self, nested: bool) -> None:
        if nested and not self.nested:
            raise ValueError("nested statistics are an offset and a state2: set those")
        if not nested:
            self.offset = self.state2 = None

    def scales(self) -> Tensor:
        """The scales, fp32 `[blocks]`, dequantized where they are nested."""
        if self.state2 is None:
            return self.absmax
        second = self.state2
        return dequantized_scales(second.absmax, self.absmax, second.code, self.offset, second.blocksize)

    def statistics(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """`absmax, absmax_8bit, absmax_code, absmax_offset` as `gemm_4bit` and `embedding_4bit` take them."""
        # The operators take nested statistics in groups of one size; others are dequantized first.
        second = self.state2
        if second is None:
            return self.absmax, None, None, None
        if second.blocksize != NESTED_BLOCKSIZE:
            return self.scales(), None, None, None
        return second.absmax, self.absmax, second.code, self.offset

    def four_bit_format(self) -> tuple[torch.Size, int, str]:
        """`shape, blocksize, quant_type` as the 4-bit operators take them. Raises ValueError for other codes."""
        if self.shape is None or self.blocksize is None or self.quant_type is None:
            raise ValueError("quant_state is not that of 4-bit codes: they have a shape, a blocksize and a quant_type")
        return self.shape, self.blocksize, self.quant_type

    def map(self, fn: Callable[[Tensor], Tensor]) -> QuantState:
        """The state with `fn` applied to each tensor; this one where that changed none.

        A state on meta knows the one that was moved there, and goes on from that.
        """
        changed: dict[str, Any] = {}
        source = self._off_meta or self
        for name in ("absmax", "code", "offset"):
            tensor = getattr(source, name)
            if tensor is not None and (new := fn(tensor)) is not tensor:
                changed[name] = new
        if source.state2 is not None and (state2 := source.state2.map(fn)) is not source.state2:
            changed["state2"] = state2
        if not changed:
            return source
        mapped = dataclasses.replace(source, **changed)
        if not mapped.absmax.is_meta:
            return mapped
        if self.absmax.is_meta:
            return self
        # Offloading puts the codes back later, but not the statistics.
        mapped.__dict__["_off_meta"] = dataclasses.replace(self)
        return mapped

    def moved_to(self, device: torch.device | str | int, non_blocking: bool = False) -> QuantState:
        """The state on a device: this one where it is there already, else another."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def to(self, device: torch.device | str | int) -> QuantState:
        """Moves this state, in place as `nn.Module.to` does, and returns it. `moved_to` leaves it where it is."""
        moved = dict(self.moved_to(device).__dict__)
        self.__dict__.pop("_off_meta", None)
        self.__dict__.update(moved)
        return self

    def as_dict(self, packed: bool = False) -> dict[str, Any]:
        """The state as a dictionary: of tensors and plain values, or, packed, of tensors only.

        Packed, the plain values are JSON bytes under `quant_state.bitsandbytes__<quant_type>`: the entries of a
        checkpoint, below `<name of the weight>.`. A state without quant_type is never packed.

        Raises RuntimeError for nested statistics on meta.
        """
        tensors = {"absmax": self.absmax, "quant_map": self.code}
        values: dict[str, Any] = {
            "quant_type": self.quant_type,
            "blocksize": self.blocksize,
            "dtype": _dtype_name(self.dtype),
            "shape": None if self.shape is None else tuple(self.shape),
        }
        if self.state2 is not None and self.offset is not None:
            if self.offset.is_meta:
                raise RuntimeError(
                    "the nested statistics are on meta, which holds no values, but the value of nested_offset is an "
                    "entry of the dictionary: take it before the move to meta"
                )
            tensors |= {"nested_absmax": self.state2.absmax, "nested_quant_map": self.state2.code}
            values |= {
                "nested_blocksize": self.state2.blocksize,
                "nested_dtype": _dtype_name(self.state2.dtype),
                "nested_offset": self.offset.item(),
            }
        if packed and self.quant_type is not None:
            return tensors | {f"quant_state.{_JSON_PREFIX}{self.quant_type}": pack_dict_to_tensor(values)}
        return tensors | values

    @classmethod
    def from_dict(cls, qs_dict: Mapping[str, Any], device: torch.device | str | int | None = None) -> QuantState:
        """The state of a dictionary from `as_dict`, packed or not, on `device` (None: where its tensors are).

        Keys may have a prefix that ends in a dot.

        Raises ValueError, naming the key, for an entry that is unknown, missing, of the wrong type or dtype, or of a
        length that does not fit the shape and block size.
        """
        return _Reader(qs_dict).state(cls, device)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantState):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))

    def __getattr__(self, name: str) -> Any:
        # torch.distributed.checkpoint looks the keys of a state dict up as attributes, dot by dot.
        if name == f"{_JSON_PREFIX}{self.__dict__.get('quant_type')}":
            return self.as_dict(packed=True)[f"quant_state.{name}"]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getitem__(self, index: int) -> Any:
        """The fields as items of a list, as older code reads them."""
        nested = None if self.state2 is None else [self.offset, self.state2]
        items = [self.absmax, self.shape, self.dtype, self.blocksize, nested, self.quant_type]
        return items[index]

    def __reduce__(self) -> tuple[type[QuantState], tuple[Any, ...]]:
        # Tensors and plain values only, so that torch.load(weights_only=True) takes it.
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["shape"] = None if self.shape is None else tuple(self.shape)
        return type(self), tuple(fields.values())


torch.serialization.add_safe_globals([QuantState])


def _dtype_name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _same(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and bool(a == b)
    if (a.dtype, a.device, a.shape) != (b.dtype, b.device, b.shape):
        return False
    return torch.equal(a, b) or torch.allclose(a.float(), b.float(), rtol=0, atol=0, equal_nan=True)


class _Reader:
    """The entries of a dictionary form, each handed out once and checked."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self.entries: dict[str, Any] = {}
        self.labels: dict[str, str] = {}
        self.prefix = ""
        self.packed_type: str | None = None
        for key, value in entries.items():
            name = key.rpartition(".")[2]
            if name.startswith(_JSON_PREFIX):
                self._unpack(key, name.removeprefix(_JSON_PREFIX), value)
            else:
                self.prefix = key.removesuffix(name)
                self._add(name, value, key)

    def _add(self, name: str, value: Any, label: str) -> None:
        if name in self.entries:
            raise ValueError(f"{label} is given twice")
        self.entries[name] = value
        self.labels[name] = label

    def _label(self, name: str) -> str:
        """What an error calls an entry, present or not: its key, or its place in the JSON bytes."""
        return self.labels.get(name, self.prefix + name)

    def _unpack(self, key: str, quant_type: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise ValueError(f"{key} is a {type(value).__name__}, expected a tensor of JSON bytes")
        try:
            unpacked = unpack_tensor_to_dict(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        self.labels |= {name: f"{key}: {name}" for name in _VALUES + _NESTED_VALUES}
        for name, item in unpacked.items():
            if name not in _VALUES + _NESTED_VALUES:
                raise ValueError(f"{key}: {name} is unknown")
            self._add(name, item, self.labels[name])
        self.packed_type = quant_type

    def state(self, cls: type[QuantState], device: torch.device | str | int | None) -> QuantState:
        quant_type = self._quant_type()
        shape = self._shape()
        blocksize = self._count("blocksize")
        blocks = None if shape is None else ceil_div(math.prod(shape), blocksize)
        dtype = self._dtype("dtype")
        nested = any(name in self.entries for name in _NESTED_KEYS + _NESTED_VALUES)
        absmax = self._tensor("absmax", torch.uint8 if nested else torch.float32, blocks)
        code = self._tensor("quant_map", torch.float32, None if quant_type is None else 16)
        if quant_type is not None:
            _check_table(code, quant_type, self._label("quant_map"))
        offset, state2 = self._nested(cls, absmax) if nested else (None, None)
        if self.entries:
            raise ValueError(f"{', '.join(map(self._label, self.entries))} is unknown")
        state = cls(absmax, shape, code, blocksize, quant_type, dtype, offset, state2)
        return state if device is None else state.moved_to(device)

    def _nested(self, cls: type[QuantState], absmax: Tensor) -> tuple[Tensor, QuantState]:
        blocksize = self._count("nested_blocksize")
        dtype = self._dtype("nested_dtype")
        offset = self._take("nested_offset")
        if not isinstance(offset, (int, float)):
            raise ValueError(f"{self._label('nested_offset')} is {offset!r}, expected a number")
        groups = self._tensor("nested_absmax", torch.float32, ceil_div(absmax.numel(), blocksize))
        code = self._tensor("nested_quant_map", torch.float32, 256)
        state2 = cls(groups, code=code, blocksize=blocksize, dtype=dtype)
        return torch.tensor(float(offset), dtype=torch.float32, device=absmax.device), state2

    def _take(self, name: str) -> Any:
        if name not in self.entries:
            raise ValueError(f"{self._label(name)} is missing")
        return self.entries.pop(name)

    def _quant_type(self) -> str | None:
        quant_type = self._take("quant_type")
        label = self._label("quant_type")
        if quant_type is not None and quant_type not in QUANT_TYPES:
            raise ValueError(f"{label} is {quant_type!r}, expected one of {', '.join(QUANT_TYPES)}")
        if self.packed_type is not None and quant_type != self.packed_type:
            raise ValueError(f"{label} is {quant_type!r}, but the key says {_JSON_PREFIX}{self.packed_type}")
        return quant_type

    def _shape(self) -> torch.Size | None:
        shape = self._take("shape")
        if shape is None:
            return None
        if not isinstance(shape, (list, tuple)) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"{self._label('shape')} is {shape!r}, expected a list of sizes")
        return torch.Size(shape)

    def _count(self, name: str) -> int:
        value = self._take(name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{self._label(name)} is {value!r}, expected an integer of at least 1")
        return value

    def _dtype(self, name: str) -> torch.dtype:
        value = self._take(name)
        dtype = getattr(torch, value, None) if isinstance(value, str) else None
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{self._label(name)} is {value!r}, expected the name of a dtype")
        return dtype

    def _tensor(self, name: str, dtype: torch.dtype, length: int | None) -> Tensor:
        tensor = self._take(name)
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{self._label(name)} is a {type(tensor).__name__}, expected a tensor")
        if tensor.dtype != dtype:
            raise ValueError(f"{self._label(name)} is {_dtype_name(tensor.dtype)}, expected {_dtype_name(dtype)}")
        if tensor.ndim != 1 or tensor.shape[0] != (tensor.numel() if length is None else length):
            expected = "one dimension" if length is None else (length,)
            raise ValueError(f"{self._label(name)} has shape {tuple(tensor.shape)}, expected {expected}")
        return tensor.detach()


def _check_table(code: Tensor, quant_type: str, label: str) -> None:
    # The operators know the table by its name: another one under that name would be dequantized wrongly.
    if not code.is_meta and not torch.allclose(code, four_bit(quant_type, code.device), rtol=0, atol=1e-6):
        raise ValueError(f"{label} does not hold the values of {quant_type}")
