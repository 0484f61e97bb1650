"""What the layers share: how a module with a quantized weight moves, saves and loads it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from .params import Int8Params, QuantizedParameter
from .stand_ins import KeepsStatistics, is_sharded

__all__ = ["Int8Layer", "QuantizedLayer", "named"]

L = TypeVar("L", bound="QuantizedLayer")


def named(error: ValueError, key: str, keys: Iterable[str]) -> str:
    """What is wrong with an entry of a checkpoint, below the key of the weight where it names no other."""
    text = str(error)
    return text if text.startswith((f"{key}.", *keys)) else f"{key}: {text}"


@contextmanager
def _no_inference() -> Iterator[None]:
    """Tensors made in inference mode could not be saved for a backward pass, ever."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _integers(value: Any) -> bool:
    # A weight that is not quantized would take codes for values.
    return isinstance(value, Tensor) and not value.is_floating_point()


class QuantizedLayer(KeepsStatistics):
    """A mixin for modules whose `weight` is a `QuantizedParameter`; it stands before the module's own class.

    Moves and casts of the module keep the identity of the weight where they do for other parameters, so that tied
    weights stay tied, and never change its codes and scales. A checkpoint has the statistics beside the weight. A
    quantized one loads into a layer that is quantized or not, an unquantized one into a layer that is not yet.

    torch.compile and torch.export take the module in one graph, from torch 2.8 on.
    """

    weight: QuantizedParameter

    @contextmanager
    def _weight_aside(self) -> Iterator[None]:
        weight, self._parameters["weight"] = self._parameters["weight"], None
        try:
            yield
        finally:
            self._parameters["weight"] = weight

    def _apply(self: L, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> L:
        weight = self._quantized_weight()
        if weight is None:
            return super()._apply(fn, recurse)
        with self._weight_aside():
            super()._apply(fn, recurse)
        if weight is self._kept:
            self._apply_to_stand_in(fn)
        else:
            self._parameters["weight"] = weight.applied(fn)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight = self._quantized_weight()
        if weight is not None:
            destination.update({prefix + key: tensor for key, tensor in weight.companions("weight").items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        others = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        weight, key = self._quantized_weight(), prefix + "weight"
        if weight is None:
            return super()._load_from_state_dict(state_dict, prefix, *others)
        names = [name for name in weight.companion_names("weight") if prefix + name in state_dict]
        if key not in state_dict or not (names or weight.quantized or _integers(state_dict[key])):
            super()._load_from_state_dict(state_dict, prefix, *others)
            if self._quantized_weight() is None:  # assign=True has put a plain parameter in its place
                self.weight = weight.replaced(self.weight.data)
            return None
        companions = {prefix + name: state_dict[prefix + name] for name in names}
        taken = {key, *companions}
        with self._weight_aside():
            rest = {name: value for name, value in state_dict.items() if name not in taken}
            super()._load_from_state_dict(rest, prefix, *others)
        value, assign = state_dict[key], local_metadata.get("assign_to_params_buffers", False)
        try:
            if weight is self._kept or is_sharded(value):
                self._load_stand_in(value, companions, assign)
                return None
            with _no_inference():
                loaded = weight.from_checkpoint(value, companions)
        except ValueError as error:
            error_msgs.append(named(error, key, companions))
            return None
        if assign:
            self.weight = loaded
        elif weight.is_meta and not loaded.is_meta:
            warnings.warn(f"{key} is on meta, where nothing can be copied to: load with assign=True", stacklevel=2)
        else:
            with _no_inference():
                moved = loaded.to(weight.device)
                own = copy.deepcopy(loaded) if moved is loaded else moved
                data = own.data
                if (data.shape, data.dtype) == (weight.shape, weight.dtype) and not weight.is_inference():
                    data = weight.copy_(data).data  # in place, since the codes may be a view of a flat parameter
            self._parameters["weight"] = weight.adopt(data, False, **own.__dict__)
        return None


class Int8Layer(QuantizedLayer):
    """A `QuantizedLayer` in int8; the statistics, which stand beside the weight in a checkpoint, are attributes too.

    torch.distributed.checkpoint looks keys up as attributes.
    """

    weight: Int8Params

    @property
    def SCB(self) -> Tensor | None:
        """The fp32 scales of the rows of the weight; None before it is quantized."""
        return getattr(self.weight, "SCB", None)

    @property
    def weight_format(self) -> Tensor:
        """0: the codes are in plain rows."""
        return torch.tensor(0, dtype=torch.uint8, device="cpu")
