"""Any parameter of any module in 4 bits, through `torch.nn.utils.parametrize`: dequantized each time it is read.

It serves weights that are no linear layer's, as the 3-D `[experts, out, in]` ones of mixture-of-experts models. In a
checkpoint the codes stand under the parameter's own name, with the statistics beside them as those of `Linear4bit`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bnb_core.functional.fourbit import dequantize_4bit, quantize_4bit
from bnb_core.ops_registry.checks import ceil_div
from bnb_core.quant_state import PACKED_KEYS, QuantState

from .layer import named
from .params import Params4bit

__all__ = ["Bnb4bitParametrization", "replace_parameter_4bit", "replace_parameter_4bit_prequantized"]


class Bnb4bitParametrization(nn.Module):
    """The values of packed 4-bit codes. quant_state: their statistics, which move with the module.

    Between `keep` and `release`, hooks of a module's forward pass, they are dequantized once.
    """

    def __init__(self, quant_state: QuantState) -> None:
        super().__init__()
        self.quant_state = quant_state
        self.release()

    def keep(self, module: nn.Module, args: Any) -> None:
        # torch calls `release` after an Exception, but not after a KeyboardInterrupt.
        self.release()
        self._keeps = True

    def release(self, *_: Any) -> None:
        self._keeps = False
        self._kept: Tensor | None = None

    @torch.no_grad()
    def forward(self, quantized_param: Tensor) -> Tensor:
        values = self._kept
        if values is None:
            values = dequantize_4bit(quantized_param, self.quant_state)
            if self._keeps:
                self._kept = values
        return values

    def _apply(self, fn: Any, recurse: bool = True) -> Bnb4bitParametrization:
        super()._apply(fn, recurse)
        self.release()
        # A cast is for the values, which have a dtype of their own; a move is for all.
        device = fn(torch.empty(0, dtype=torch.uint8, device=self.quant_state.absmax.device)).device
        self.quant_state = self.quant_state.moved_to(device)
        return self


def replace_parameter_4bit(
    module: nn.Module,
    param_name: str,
    compress_statistics: bool = False,
    quant_type: str = "nf4",
    blocksize: int | None = None,
) -> None:
    """Quantizes a parameter of a module, in place: reading it then gives the dequantized values, in its own dtype.

    compress_statistics: quantizes the scales too. blocksize: by default 64. The values have no gradient. During a
    forward pass of the module they are dequantized once.

    Raises AttributeError where the module has no such parameter, TypeError where that is none.
    """
    value = _parameter(module, param_name)
    packed, state = quantize_4bit(
        value.detach(), blocksize=blocksize, compress_statistics=compress_statistics, quant_type=quant_type
    )
    _replace(module, param_name, packed, state)


def replace_parameter_4bit_prequantized(
    module: nn.Module, param_name: str, qs_dict: dict[str, Any], device: torch.device | str
) -> None:
    """The same for a parameter that holds packed codes already. qs_dict: the entries of `QuantState.as_dict`.

    Raises as `replace_parameter_4bit`, and ValueError for entries that are no state, or not that of the codes.
    """
    packed, state = _parameter(module, param_name).detach().to(device), QuantState.from_dict(qs_dict, device)
    _replace(module, param_name, _as_bytes(packed, state), state)


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    if not hasattr(module, name):
        raise AttributeError(f"{type(module).__name__} has no parameter {name!r}")
    value = getattr(module, name)
    if not isinstance(value, nn.Parameter):
        raise TypeError(f"{type(module).__name__}.{name} is a {type(value).__name__}, expected a Parameter")
    return value


def _as_bytes(packed: Tensor, state: QuantState) -> Tensor:
    """Codes in uint8, which a cast of the module leaves as they are; ValueError where they are not those of a state."""
    codes = Params4bit(packed, quant_state=state).data.contiguous().view(-1).view(torch.uint8)
    return codes[: ceil_div(state.four_bit_format()[0].numel(), 2)].unsqueeze(1)


def _replace(module: nn.Module, name: str, packed: Tensor, state: QuantState) -> None:
    setattr(module, name, nn.Parameter(packed, requires_grad=False))
    parametrization = Bnb4bitParametrization(state)
    # unsafe: codes and values differ in shape and dtype.
    parametrize.register_parametrization(module, name, parametrization, unsafe=True)
    module.register_state_dict_post_hook(_Saving(name))
    module.register_load_state_dict_pre_hook(_Loading(name))
    module.register_forward_pre_hook(parametrization.keep)
    module.register_forward_hook(parametrization.release, always_call=True)


def _parametrization(module: nn.Module, name: str) -> Bnb4bitParametrization:
    of_name: Any = module.parametrizations[name]  # type: ignore[index]
    found: Bnb4bitParametrization = of_name[0]
    return found


class _Saving:
    """Puts codes and statistics under the parameter's own name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
        codes = state_dict.pop(f"{prefix}parametrizations.{self.name}.original", None)
        if codes is None:
            return
        state_dict[prefix + self.name] = codes
        for key, tensor in _parametrization(module, self.name).quant_state.as_dict(packed=True).items():
            state_dict[f"{prefix}{self.name}.{key}"] = tensor


class _Loading:
    """Takes codes and statistics from where `_Saving` puts them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        *_, error_msgs = rest
        key = prefix + self.name
        if key not in state_dict:
            return
        keys = [f"{key}.{end}" for end in PACKED_KEYS]
        present = {name: state_dict.pop(name) for name in keys if name in state_dict}
        parametrization = _parametrization(module, self.name)
        own = parametrization.quant_state
        try:
            state = QuantState.from_dict(present, own.absmax.device)
            if state.shape != own.shape:
                raise ValueError(f"the checkpoint has a weight of shape {state.shape}, the module one of {own.shape}")
            codes = _as_bytes(state_dict.pop(key), state)
        except ValueError as error:
            error_msgs.append(named(error, key, present))
            state_dict.pop(key, None)
            return
        state_dict[f"{prefix}parametrizations.{self.name}.original"] = codes
        # A checkpoint's tensors stay its own, as those of other parameters do.
        parametrization.quant_state = state.map(torch.Tensor.clone)
        parametrization.release()
