"""Linear layer with a weight in int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnb_core.autograd import MatmulLtState, int8_linear, int8_linear_of_weight

from .layer import Int8Layer
from .params import Int8Params

__all__ = ["LayerState", "Linear8bitLt"]


def _of_layer(name: str) -> Any:
    return property(lambda self: getattr(self._layer, name), lambda self, value: setattr(self._layer, name, value))


class LayerState(MatmulLtState):
    """The `MatmulLtState` of a layer: settings are read from it and written to it, codes and scales are the weight's,
    and stay with the weight whatever is written here.
    """

    def __init__(self, layer: Linear8bitLt) -> None:
        self._layer = layer
        # A parameter of another class, which something may have put there, has neither.
        self.CB, self.SCB = getattr(layer.weight, "CB", None), getattr(layer.weight, "SCB", None)

    threshold = _of_layer("threshold")
    has_fp16_weights = _of_layer("has_fp16_weights")


class Linear8bitLt(Int8Layer, torch.nn.Linear):
    """A linear layer computed by LLM.int8() (arXiv:2208.07339).

    has_fp16_weights: True keeps the weight as it is and quantizes it in each forward; it has a gradient. False
    quantizes it on the first move to a device, `cpu` included (`layer.to("cpu")`), in the weight's own dtype; it has
    none. threshold: columns of the input with a magnitude of at least this are computed in the input's dtype; 0 for
    none. index: has no effect; it becomes an attribute.

    The input is `[…, input_features]` in fp32, fp16 or bf16, the output in the same dtype. A forward pass changes
    nothing in the layer.

    forward raises RuntimeError while a weight that is to be quantized is not.
    """

    weight: Int8Params

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        has_fp16_weights: bool = True,
        threshold: float = 0.0,
        index: object = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__(input_features, output_features, bias, device)
        self.weight = Int8Params(self.weight.data, has_fp16_weights, has_fp16_weights)
        self.has_fp16_weights = has_fp16_weights
        self.threshold = threshold
        self.index = index

    @property
    def state(self) -> LayerState:
        """Codes, scales and settings, as `matmul` takes them. From a state that is assigned come the settings."""
        return LayerState(self)

    @state.setter
    def state(self, state: MatmulLtState) -> None:
        self.threshold, self.has_fp16_weights = state.threshold, state.has_fp16_weights

    def init_8bit_state(self) -> None:
        """Nothing to do: `state` has what the weight has. Subclasses with a forward of their own call it."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._operand("weight"), self._operand("bias")
        if self.has_fp16_weights:
            return int8_linear_of_weight(x, weight, bias, self.threshold)
        scales = getattr(weight, "SCB", None)
        if scales is None:
            scales = self._statistics("SCB", Int8Params)
        return int8_linear(x, weight, scales, bias, self.threshold)
