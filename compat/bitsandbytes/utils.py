"""Tools around models."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from bnb_core.nn.outliers import OutlierTracer, find_outlier_dims
from bnb_core.quant_state import pack_dict_to_tensor, unpack_tensor_to_dict

__all__ = [
    "INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING",
    "LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING",
    "OutlierTracer",
    "execute_and_return",
    "find_outlier_dims",
    "outlier_hook",
    "pack_dict_to_tensor",
    "replace_linear",
    "sync_gpu",
    "unpack_tensor_to_dict",
]

# What `weight_format` of a checkpoint meant; `row` is the one that is left.
LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING = {"row": 0, "col32": 1, "col_turing": 2, "col_ampere": 3}
INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING = {
    number: name for name, number in LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING.items()
}


def execute_and_return(command_string: str) -> tuple[str, str]:
    """What a command printed to stdout and to stderr. Raises OSError where there is no such command."""
    done = subprocess.run(shlex.split(command_string), capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


def outlier_hook(module: nn.Module, input: tuple[Tensor, ...]) -> None:
    """The hook of the one `OutlierTracer`."""
    OutlierTracer.get_instance().observe(module, input)


def replace_linear(
    model: nn.Module,
    linear_replacement: Callable[..., nn.Module],
    skip_modules: Iterable[str] = ("lm_head",),
    copy_weights: bool = False,
    post_processing_function: str | None = None,
) -> nn.Module:
    """Puts `linear_replacement(in_features, out_features, bias)` in the place of each `nn.Linear`; returns the model.

    skip_modules: names, the last part only, that stay. copy_weights: the new layers get weight and bias of the old.
    post_processing_function: a method of the layers, called with each layer that was there before.
    """
    skip = set(skip_modules)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear) or name in skip:
                continue
            new = linear_replacement(child.in_features, child.out_features, child.bias is not None)
            if copy_weights:
                new.weight, new.bias = child.weight, child.bias
            setattr(parent, name, new)
            if post_processing_function is not None:
                method = getattr(child, post_processing_function, None)
                if method is not None:
                    method(child)
    return model


def sync_gpu(t: Tensor) -> None:
    """Waits for the tensor's device; nothing to wait for on the CPU."""
    if t.device.type != "cpu":
        torch.accelerator.synchronize(t.device)
