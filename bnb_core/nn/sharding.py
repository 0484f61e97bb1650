"""Quantized weights that FSDP shards.

FSDP puts tensors of its own in the place of a layer's parameter: FSDP2 a `DTensor`, and the gathered codes for the time
of a forward or backward pass; FSDP1 views of its flat parameter. None of them is a `QuantizedParameter`. Codes are
sharded; the statistics stay whole on each rank, with the layer, which lends them to whatever stands for its weight.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .params import QuantizedParameter, bytewise

__all__ = ["ShardableLayer", "is_sharded"]


def is_sharded(tensor: Any) -> bool:
    """True for a DTensor."""
    # Where torch.distributed was not imported there is none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


class ShardableLayer(torch.nn.Module):
    """A module that keeps the statistics of its quantized `weight` when something else is put in its place."""

    _kept: QuantizedParameter | None = None
    """The parameter that was replaced, with its codes on meta."""

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
