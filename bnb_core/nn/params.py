"""Parameters that quantize themselves on their first move to a device; no later move or cast changes their codes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from bnb_core.functional.fourbit import DEFAULT_4BIT_BLOCKSIZE, quantize_4bit
from bnb_core.functional.int8 import int8_weight_quant
from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.formats import STORAGES
from bnb_core.quant_state import PACKED_KEYS, QuantState

__all__ = ["Int8Params", "Params4bit", "QuantizedParameter"]

P = TypeVar("P", bound="QuantizedParameter")

_LOAD_FIRST = "the layer is quantized already: load an unquantized weight before the layer's first move to a device"

_NO_STATISTICS = "the checkpoint has a weight of {}, but no statistics beside it"


def _mover(device_type: str) -> Callable[..., Any]:
    def move(self: QuantizedParameter, device: Any = None, non_blocking: bool = False) -> Tensor:
        place = torch.device(device_type, device) if isinstance(device, int) else device or device_type
        return self.to(place, non_blocking=non_blocking)

    move.__name__ = device_type
    return move


def bytewise(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """`fn` of a tensor seen as bytes, so that it moves them and cannot cast them."""
    raw = tensor.reshape(-1).view(torch.uint8)
    moved = fn(raw)
    if moved is raw:
        return tensor
    if moved.dtype != torch.uint8:
        return tensor.to(moved.device)
    return moved.view(tensor.dtype).reshape(tensor.shape)


def _changes(parts: Mapping[str, Tensor | QuantState], fn: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The parts that `fn` changes."""
    changed = {}
    for name, part in parts.items():
        new = part.map(fn) if isinstance(part, QuantState) else fn(part)
        if new is not part:
            changed[name] = new
    return changed


class QuantizedParameter(torch.nn.Parameter):
    """What 4-bit and int8 parameters share: when they quantize, and how they move, copy and pickle.

    The first `.to(device)` quantizes, in place where torch lets a tensor change its device in place; `meta` is no such
    device. From then on a cast (`.half()`, `.to(dtype)`, …) returns the parameter as it is, and a move to another
    device returns a new one, scales and all. What stands in `__dict__` are arguments of the constructor; attributes
    that others set go there too and survive.
    """

    @property
    def quantized(self) -> bool:
        """True where the data are codes."""
        raise NotImplementedError

    def companion_names(self, name: str) -> tuple[str, ...]:
        """The keys that may stand in a checkpoint for the statistics of a parameter called `name`."""
        raise NotImplementedError

    def companions(self, name: str) -> dict[str, Tensor]:
        """What a checkpoint holds beside the codes."""
        raise NotImplementedError

    def from_checkpoint(
        self: P, data: Tensor, companions: Mapping[str, Tensor], device: torch.device | None = None
    ) -> P:
        """The parameter with codes of a checkpoint, of which it keeps the tensors.

        companions: the statistics by their keys, which may have a prefix that ends in a dot, and are named in errors.
        device: of the statistics, by default where data is.

        Raises ValueError where they are not those of a weight of this shape, or companions are missing.
        """
        raise NotImplementedError

    def _quantizes(self) -> bool:
        """True where the next move to a device quantizes."""
        raise NotImplementedError

    def _quantize(self: P, data: Tensor) -> P:
        """This parameter with `data` quantized."""
        raise NotImplementedError

    def _statistics(self) -> dict[str, Tensor | QuantState]:
        """What moves with the codes, by the name of the constructor's argument."""
        raise NotImplementedError

    def lent(self) -> dict[str, Any]:
        """The attributes by which a layer, and a traversal of the keys of a checkpoint, find the statistics."""
        raise NotImplementedError

    def _attributes(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def replaced(self: P, data: Tensor | None = None, **changed: Any) -> P:
        """A parameter like this one, but for what is given."""
        arguments = {"requires_grad": self.requires_grad, **self._attributes(), **changed}
        return type(self)(self.data if data is None else data, **arguments)

    def adopt(self: P, data: Tensor, requires_grad: bool, **attributes: Any) -> P:
        """This parameter with other data and attributes: in place where the type of tensor allows, else a new one."""
        # An inference tensor stays one, whatever data it is given.
        if self.is_inference() or not torch._has_compatible_shallow_copy_type(self, data):
            return self.replaced(data, requires_grad=requires_grad, **attributes)
        self.requires_grad_(requires_grad)
        self.grad = None
        self.data = data
        self.__dict__.update(attributes)
        return self

    def applied(self, fn: Callable[[Tensor], Tensor]) -> QuantizedParameter:
        """The parameter after a function of `nn.Module._apply`, in place as there; codes and scales keep their bits."""
        if self.quantized:
            changed = self._changed(lambda tensor: bytewise(fn, tensor))
            return self.adopt(changed.pop("data", self.data), self.requires_grad, **changed)
        gradient = self.grad
        with torch.no_grad():
            data = fn(self)
            if data is self or (isinstance(data, QuantizedParameter) and data.quantized):
                return data
            result = self.adopt(data, self.requires_grad)
            if gradient is not None:
                result.grad = fn(gradient)
        return result

    def _changed(self, fn: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What `fn` changes of data and statistics."""
        return _changes({"data": self.data, **self._statistics()}, fn)

    def without_codes(self: P) -> P:
        """A quantized parameter like this one, with its codes on meta."""
        return self.replaced(torch.empty_like(self.data, device="meta"))

    def with_statistics(self: P, fn: Callable[[Tensor], Tensor]) -> P:
        """A parameter like this one with `fn` applied to its statistics; this one where that changes none."""
        changed = _changes(self._statistics(), fn)
        return self.replaced(**changed) if changed else self

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Tensor.to`, but that a move quantizes a parameter that is not yet, and that codes are never cast."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if self.quantized:
            changed = {} if device is None else self._changed(lambda t: t.to(device, non_blocking=non_blocking))
            return self.replaced(**changed) if changed else self
        if self._quantizes() and device is not None and device.type != "meta":
            # Tensors made in inference mode could not be saved for a backward pass, ever.
            with torch.inference_mode(False), torch.no_grad():
                return self._quantize(self.data.to(device, dtype, non_blocking=non_blocking))
        moved = super().to(*args, **kwargs)
        # A new parameter would be a leaf, and no gradient would flow back to this one.
        return moved if moved is self or self.requires_grad else self.replaced(moved)

    cpu, cuda, xpu, mtia, ipu = (_mover(device_type) for device_type in ("cpu", "cuda", "xpu", "mtia", "ipu"))

    def half(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.to(torch.float16, *args, **kwargs)

    def bfloat16(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.to(torch.bfloat16, *args, **kwargs)

    def float(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.to(torch.float32, *args, **kwargs)

    def double(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.to(torch.float64, *args, **kwargs)

    def type_as(self, other: Tensor) -> Tensor:
        return self.to(other)

    def type(self, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if dtype is not None and self.quantized:
            return self
        return super().type(dtype, non_blocking, **kwargs)

    def __deepcopy__(self: P, memo: dict[int, Any]) -> P:
        if id(self) not in memo:
            memo[id(self)] = self.replaced(self.data.clone(), **copy.deepcopy(self._attributes(), memo))
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild_parameter, (type(self), self.data, self.requires_grad, self._attributes())


def _rebuild_parameter(cls: type[P], data: Tensor, requires_grad: bool, attributes: dict[str, Any]) -> P:
    return cls(data, requires_grad=requires_grad, **attributes)


def _warn_of_non_finite(scales: Tensor, what: str) -> None:
    if scales.is_meta:
        return
    lost = scales.numel() - int(torch.isfinite(scales).sum())
    if lost:
        warnings.warn(f"the weight holds NaN or Inf: {lost} of {scales.numel()} {what} dequantize to NaN", stacklevel=4)


def _from_state(*path: str) -> Any:
    """A property that is the attribute of the quant_state at the end of a path."""

    def read(self: Params4bit) -> Any:
        value: Any = self.quant_state
        for name in path:
            value = getattr(value, name)
        return value

    return property(read, doc=f"`quant_state.{'.'.join(path)}`")


def _packed_length(shape: torch.Size, storage: torch.dtype) -> int:
    return ceil_div(ceil_div(shape.numel(), 2), storage.itemsize)


class Params4bit(QuantizedParameter):
    """A weight in 4 bits (QLoRA, arXiv:2305.14314).

    data: the weight in fp32, fp16 or bf16, or the packed codes of a `quant_state`.
    blocksize (by default 64), compress_statistics, quant_type, quant_storage: how `quantize_4bit` is to quantize;
    with a quant_state they are what that says. bnb_quantized: False takes `data` for a weight although there is a
    quant_state, which is forgotten. module: taken for compatibility; a layer reads the state of its weight.
    Other keywords become attributes.

    Raises ValueError where a quant_state does not fit the data, or bnb_quantized is True without one.
    """

    blocksize: int
    compress_statistics: bool
    quant_type: str
    quant_storage: torch.dtype
    quant_state: QuantState | None
    bnb_quantized: bool

    module: ClassVar[None] = None
    """No parameter has its layer; peft gives what stands here back to the constructor."""

    def __new__(
        cls,
        data: Tensor | None = None,
        requires_grad: bool = False,
        quant_state: QuantState | None = None,
        blocksize: int | None = None,
        compress_statistics: bool = True,
        quant_type: str = "fp4",
        quant_storage: torch.dtype = torch.uint8,
        module: torch.nn.Module | None = None,
        bnb_quantized: bool | None = None,
        **attributes: Any,
    ) -> Params4bit:
        if bnb_quantized and quant_state is None:
            raise ValueError("bnb_quantized=True needs the quant_state of the data")
        data = torch.empty(0) if data is None else data
        self = torch.Tensor._make_subclass(cls, data, requires_grad)
        self.__dict__.update(attributes)
        self.blocksize = DEFAULT_4BIT_BLOCKSIZE if blocksize is None else blocksize
        self.compress_statistics = compress_statistics
        self.quant_type = quant_type
        self.quant_storage = quant_storage
        self._set_state(quant_state if bnb_quantized is not False else None)
        return self

    @classmethod
    def from_prequantized(
        cls,
        data: Tensor,
        quantized_stats: Mapping[str, Any],
        requires_grad: bool = False,
        device: torch.device | str | int | None = None,
        module: torch.nn.Module | None = None,
        **attributes: Any,
    ) -> Params4bit:
        """The parameter of packed codes and the entries of `QuantState.as_dict`, on `device` (None: where data is).

        Raises ValueError where the entries are not a state, or not that of the data.
        """
        data = data if device is None else data.to(device)
        state = QuantState.from_dict(quantized_stats, data.device)
        return cls(data, requires_grad, state, module=module, **attributes)

    @property
    def quantized(self) -> bool:
        return self.quant_state is not None

    def companion_names(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}.{key}" for key in PACKED_KEYS)

    def companions(self, name: str) -> dict[str, Tensor]:
        entries = {} if self.quant_state is None else self.quant_state.as_dict(packed=True)
        return {f"{name}.{key}": tensor for key, tensor in entries.items()}

    def from_checkpoint(
        self, data: Tensor, companions: Mapping[str, Tensor], device: torch.device | None = None
    ) -> Params4bit:
        if not companions:
            raise ValueError(_LOAD_FIRST if data.is_floating_point() else _NO_STATISTICS.format(data.dtype))
        state = QuantState.from_dict(companions, device or data.device)
        own = self.shape if self.quant_state is None else self.quant_state.shape
        if state.shape != own:
            raise ValueError(f"the checkpoint has a weight of shape {state.shape}, the layer one of {own}")
        return self.replaced(data, requires_grad=False, quant_state=state, bnb_quantized=True)

    def _quantizes(self) -> bool:
        return not self.quantized

    def _quantize(self, data: Tensor) -> Params4bit:
        packed, state = quantize_4bit(
            data,
            blocksize=self.blocksize,
            compress_statistics=self.compress_statistics,
            quant_type=self.quant_type,
            quant_storage=self.quant_storage,
        )
        _warn_of_non_finite(state.scales(), f"blocks of {state.blocksize}")
        return self.adopt(packed, False, quant_state=state, bnb_quantized=True)

    def _set_state(self, state: QuantState | None) -> None:
        self.quant_state = state
        self.bnb_quantized = state is not None
        if state is None:
            return
        if self.dtype not in STORAGES:
            raise ValueError(f"data is {self.dtype}, expected one of {', '.join(map(str, STORAGES))}")
        shape, blocksize, quant_type = state.four_bit_format()
        needed = _packed_length(shape, self.dtype)
        if self.numel() != needed:
            raise ValueError(
                f"data has {self.numel()} elements of {self.dtype}, but quant_state of shape {tuple(shape)} "
                f"needs {needed}"
            )
        self.blocksize = blocksize
        self.compress_statistics = state.nested
        self.quant_type = quant_type
        self.quant_storage = self.dtype

    def _statistics(self) -> dict[str, Tensor | QuantState]:
        return {} if self.quant_state is None else {"quant_state": self.quant_state}

    def without_codes(self) -> Params4bit:
        # A sharded flat parameter of FSDP1 leaves the part of one rank.
        assert self.quant_state is not None
        length = _packed_length(self.quant_state.four_bit_format()[0], self.dtype)
        return self.replaced(torch.empty(length, 1, dtype=self.dtype, device="meta"))

    def lent(self) -> dict[str, Any]:
        nested = ("nested_absmax", "nested_quant_map") if self.compress_statistics else ()
        return {name: getattr(self, name) for name in ("quant_state", "absmax", "quant_map", *nested)}

    def _attributes(self) -> dict[str, Any]:
        # Others write to `__dict__`, where bnb_quantized is a word of the constructor's; the state is what counts.
        return {**self.__dict__, "bnb_quantized": self.quantized}

    absmax = _from_state("absmax")
    code = _from_state("code")
    quant_map = _from_state("code")
    offset = _from_state("offset")
    state2 = _from_state("state2")
    nested_absmax = _from_state("state2", "absmax")
    nested_blocksize = _from_state("state2", "blocksize")
    nested_quant_map = _from_state("state2", "code")
    nested_dtype = _from_state("state2", "dtype")
    nested_offset = _from_state("offset")


class Int8Params(QuantizedParameter):
    """A weight in int8, by rows (LLM.int8(), arXiv:2208.07339), or, with has_fp16_weights, an ordinary parameter.

    data: the weight `[N, K]` in fp32, fp16 or bf16, or its int8 codes; CB: the same codes under their older name.
    SCB: fp32 scales `[N]` of codes. Other keywords become attributes.
    """

    has_fp16_weights: bool
    SCB: Tensor | None

    def __new__(
        cls,
        data: Tensor | None = None,
        requires_grad: bool = True,
        has_fp16_weights: bool = False,
        CB: Tensor | None = None,
        SCB: Tensor | None = None,
        **attributes: Any,
    ) -> Int8Params:
        data = CB if CB is not None else torch.empty(0) if data is None else data
        self = torch.Tensor._make_subclass(cls, data, requires_grad and data.is_floating_point())
        self.__dict__.update(attributes)
        self.has_fp16_weights = has_fp16_weights
        self.SCB = SCB if self.quantized else None
        return self

    @property
    def CB(self) -> Tensor | None:
        """The int8 codes `[N, K]`; None where they have no scales. Setting None leaves the codes, as modules do that
        take codes and scales away into a state of their own.
        """
        return self.data if self.quantized and self.SCB is not None else None

    @CB.setter
    def CB(self, codes: Tensor | None) -> None:
        if codes is not None:
            self.data = codes

    @property
    def quantized(self) -> bool:
        return self.dtype == torch.int8

    def companion_names(self, name: str) -> tuple[str, ...]:
        return "SCB", f"{name}_format"

    def companions(self, name: str) -> dict[str, Tensor]:
        if self.SCB is None:
            return {}
        # 0: plain rows, the only one of the formats of old versions that is left.
        return {"SCB": self.SCB, f"{name}_format": torch.tensor(0, dtype=torch.uint8, device="cpu")}

    def from_checkpoint(
        self, data: Tensor, companions: Mapping[str, Tensor], device: torch.device | None = None
    ) -> Int8Params:
        if self.has_fp16_weights:
            raise ValueError("the checkpoint holds int8 codes, but the layer has has_fp16_weights=True")
        if not companions:
            raise ValueError(_LOAD_FIRST if data.is_floating_point() else _NO_STATISTICS.format(data.dtype))
        if data.dtype != torch.int8:
            raise ValueError(f"the checkpoint has scales (SCB), but a weight of {data.dtype}, expected torch.int8")
        if data.shape != self.shape:
            raise ValueError(f"the checkpoint has a weight of shape {data.shape}, the layer one of {self.shape}")
        before, dot, _ = next(iter(companions)).rpartition(".")
        scales, name = None, f"{before}{dot}SCB"
        for key, value in companions.items():
            if not key.endswith("_format"):
                scales, name = value, key
            elif value.numel() != 1 or int(value) != 0:
                raise ValueError(f"{key} is {value.tolist()}, expected 0 (rows)")
        if scales is None or scales.dtype != torch.float32 or scales.shape != data.shape[:1]:
            found = "missing" if scales is None else f"{scales.dtype} {tuple(scales.shape)}"
            raise ValueError(f"{name} is {found}, expected torch.float32 {tuple(data.shape[:1])}")
        return self.replaced(data, requires_grad=False, SCB=scales.detach().to(device or data.device))

    def _quantizes(self) -> bool:
        return not self.has_fp16_weights

    def _quantize(self, data: Tensor) -> Int8Params:
        codes, scales = int8_weight_quant(data)
        _warn_of_non_finite(scales, "rows")
        return self.adopt(codes, False, SCB=scales)

    def _statistics(self) -> dict[str, Tensor | QuantState]:
        return {} if self.SCB is None else {"SCB": self.SCB}

    def lent(self) -> dict[str, Any]:
        return {"SCB": self.SCB}


torch.serialization.add_safe_globals([Params4bit, Int8Params, _rebuild_parameter])
