"""What stands in for a quantized weight, and how it comes to the statistics.

Others put tensors of their own in the place of a layer's parameter, of which none is a `QuantizedParameter`. FSDP2 puts
a `DTensor` there, and the gathered codes for the time of a forward or backward pass; FSDP1 views of its flat parameter.
Codes are sharded; the statistics stay whole on each rank, with the layer, which lends them to whatever stands for its
weight. torch.export puts fake codes there while it traces, around the layer's `__setattr__`, and then the weight again.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .params import QuantizedParameter, bytewise

__all__ = ["KeepsStatistics", "is_sharded"]

# torch 2.6 does not tell one from the other.
_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


class _Parameters(dict[str, Any]):
    """The parameters of a layer, which know whose place a tensor takes that is put there for a while."""

    # Weakly: who puts the weight back keeps it meanwhile, and who does not may free it.
    _displaced: weakref.ref[QuantizedParameter] | None = None

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "weight":
            present = self.get(name)
            if value is None or isinstance(value, QuantizedParameter):
                self._displaced = None
            elif isinstance(present, QuantizedParameter):
                self._displaced = weakref.ref(present)
        super().__setitem__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    @property
    def displaced(self) -> QuantizedParameter | None:
        """The weight in whose place another tensor stands."""
        return None if self._displaced is None else self._displaced()


def is_sharded(tensor: Any) -> bool:
    """True for a DTensor."""
    # Where torch.distributed was not imported there is none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


class KeepsStatistics(torch.nn.Module):
    """A module that keeps the statistics of its quantized `weight` when something else is put in its place."""

    _kept: QuantizedParameter | None = None
    """The parameter that was replaced, with its codes on meta."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__["_parameters"] = _Parameters(self._parameters)

    def _operand(self, name: str) -> Any:
        # The attribute of that name. `nn.Module.__getattr__` takes 0.8 µs to look among the parameters last.
        parameters = self._parameters
        return parameters[name] if name in parameters else getattr(self, name)

    def _statistics(self, name: str, expected: type[QuantizedParameter]) -> Any:
        """What a forward pass takes where the weight, which should be of the class `expected`, has no statistics.

        torch.export traces with another tensor in the weight's place, and takes those of the weight.

        Raises RuntimeError where there are none.
        """
        weight = self._operand("weight")
        displaced = getattr(self._parameters, "displaced", None)
        if displaced is not None and _exporting():
            weight = displaced
        statistics = getattr(weight, name, None)
        if statistics is not None:
            return statistics
        if isinstance(weight, QuantizedParameter):
            raise RuntimeError(
                "the weight is not quantized yet: move the layer to its device once, as in layer.to('cpu')"
            )
        raise RuntimeError(
            f"the weight is a {type(weight).__name__} without statistics, which was put in the place of the layer's "
            f"own: assign a {expected.__name__}, and quantize before fully_shard"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self._keep()
            if isinstance(value, QuantizedParameter):
                self._set_kept(None)
            elif isinstance(value, Tensor):
                self._lend(value)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name == "weight":
            self._keep()
        super().__delattr__(name)

    def _quantized_weight(self) -> QuantizedParameter | None:
        """The weight, or the one that it stands for. A parameter of another class is treated as in any module."""
        weight, kept = self._parameters.get("weight"), self._kept
        if isinstance(weight, QuantizedParameter):
            return weight
        if weight is None or kept is None or (weight.numel(), weight.dtype) != (kept.numel(), kept.dtype):
            return None
        return kept

    def _set_kept(self, kept: QuantizedParameter | None) -> None:
        # As an attribute, a parameter would be registered.
        self.__dict__["_kept"] = kept

    def _keep(self) -> None:
        weight = self._parameters.get("weight")
        if isinstance(weight, QuantizedParameter) and weight.quantized:
            self._set_kept(weight.without_codes())

    def _lend(self, weight: Tensor) -> None:
        """Gives a tensor of the codes the statistics as attributes; nothing to one that is not as large.

        Raises RuntimeError where the codes were cast.
        """
        kept = self._kept
        if kept is None or weight.numel() != kept.numel():
            return
        if weight.dtype != kept.dtype:
            if kept.is_floating_point():
                raise RuntimeError(
                    f"the codes of a quantized weight, stored as {kept.dtype}, were cast to {weight.dtype}, which "
                    "destroys them: shard it with quant_storage=torch.uint8 or that of the param_dtype of the "
                    "mixed-precision policy"
                )
            return
        # A shard may wait on another device, the gathered codes are where the layer computes.
        if not (is_sharded(weight) or weight.is_meta):
            kept = kept.with_statistics(lambda tensor: tensor.to(weight.device))
            self._set_kept(kept)
        weight.__dict__.update(kept.lent())

    def _apply_to_stand_in(self, fn: Callable[[Tensor], Tensor]) -> None:
        """A function of `nn.Module._apply`, which may change the device of codes and statistics, and nothing else."""
        kept, weight = self._kept, self._parameters.get("weight")
        assert kept is not None
        self._set_kept(kept.with_statistics(lambda tensor: bytewise(fn, tensor)))
        if weight is None:
            return
        device = fn(torch.empty(0, dtype=torch.uint8, device=weight.device)).device
        if device != weight.device:
            moved = torch.empty_like(weight, device=device) if weight.is_meta else weight.detach().to(device)
            weight = torch.nn.Parameter(moved, requires_grad=False)
        self.weight = weight

    def _load_stand_in(self, value: Tensor, companions: Mapping[str, Tensor], assign: bool) -> None:
        """Codes and statistics of a checkpoint; ValueError where the codes are not placed as those of the weight."""
        kept, weight = self._kept, self._parameters.get("weight")
        if kept is None or weight is None or is_sharded(value) != is_sharded(weight):
            kinds = (type(tensor).__name__ for tensor in (value, weight))
            raise ValueError(
                "the checkpoint has a {}, the layer a {}: load with set_model_state_dict of "
                "torch.distributed.checkpoint.state_dict".format(*kinds)
            )
        if not companions:
            raise ValueError(
                "the checkpoint has no statistics beside the codes of the sharded weight: load it on each rank, since "
                "broadcast_from_rank0=True does not bring them"
            )
        if (value.shape, value.dtype) != (kept.shape, kept.dtype):
            raise ValueError(
                f"the checkpoint has codes {tuple(value.shape)} of {value.dtype}, the sharded weight "
                f"{tuple(kept.shape)} of {kept.dtype}"
            )
        device = value.device if assign else weight.device
        loaded = kept.from_checkpoint(kept.data, companions, device).with_statistics(Tensor.clone)
        if assign:
            weight = torch.nn.Parameter(value, requires_grad=False)
        elif weight.is_meta and not value.is_meta:
            raise ValueError("the sharded weight is on meta, where nothing can be copied to: load with assign=True")
        else:
            with torch.no_grad():
                weight.copy_(value)
        self._set_kept(loaded)
        self.weight = weight
