"""The linear layers of a model: swapped for ours, and what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import bnb_core

from .plan import Variant

OUTLIER_THRESHOLD = 6.0
"""Activations above it are multiplied unquantized by the int8 layers (LLM.int8(), arXiv:2208.07339)."""

HEAD = "lm_head"
"""The layer that is left as it is: its weight is the embedding's."""


def quantized_layer(linear: nn.Linear, variant: Variant, dtype: torch.dtype) -> nn.Linear:
    """An empty layer of the shape of `linear` in the given format; its values are yet to be loaded."""
    bias = linear.bias is not None
    if variant.to == "int8":
        return bnb_core.nn.Linear8bitLt(
            linear.in_features, linear.out_features, bias, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD
        )
    return bnb_core.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias,
        compute_dtype=dtype,
        compress_statistics=variant.double,
        quant_type=variant.to,
    )


def swap_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> int:
    """Replaces every linear layer but the head, in place; returns how many."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and name != HEAD
    ]
    for parent, name, child in found:
        setattr(parent, name, make(child))
    return len(found)


def linears(model: nn.Module) -> Iterator[nn.Module]:
    """The linear layers that are quantized, or would be."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] != HEAD:
            yield module


def held_bytes(*roots: object) -> int:
    """Bytes of every tensor that the objects hold: parameters, buffers, scales, codes and caches, shared ones once."""
    storages = {}
    for tensor in _tensors(roots, set()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(thing: object, seen: set[int]) -> Iterator[Tensor]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    if isinstance(thing, dict):
        inner = list(thing.values())
    elif isinstance(thing, (list, tuple)):
        inner = list(thing)
    elif isinstance(thing, (Tensor, nn.Module)) or type(thing).__module__.startswith("bnb_core."):
        inner = list(getattr(thing, "__dict__", {}).values())
    else:
        return
    for value in inner:
        yield from _tensors(value, seen)
