"""Linear layers with a weight in 4 bits."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from torch import Tensor

from bnb_core.autograd import matmul_4bit
from bnb_core.quant_state import QuantState

from .layer import QuantizedLayer
from .params import Params4bit

__all__ = ["Linear4bit", "LinearFP4", "LinearNF4"]


class Linear4bit(QuantizedLayer, torch.nn.Linear):
    """A linear layer whose weight is quantized to 4 bits on the first move to a device (QLoRA, arXiv:2305.14314).

    compute_dtype: dtype of the product, by default that of the input. compress_statistics: quantizes the scales too.
    quant_type: `nf4` or `fp4`. quant_storage: the dtype the packed codes are viewed as.

    A move to `cpu` counts, also where the layer is there already: `layer.to("cpu")`. The input is `[…,
    input_features]` in fp32, fp16 or bf16, the output in the same dtype. Input and bias have gradients, the weight has
    none. A forward pass changes nothing in the layer.

    forward raises RuntimeError while the weight is not quantized. It warns, once in training and once in inference, of
    an input in fp32 that it rounds to a compute_dtype of 16 bits.
    """

    weight: Params4bit

    # Read by subclasses with a forward of their own: an input sets no compute_dtype here.
    compute_type_is_set = True

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        compute_dtype: torch.dtype | None = None,
        compress_statistics: bool = True,
        quant_type: str = "fp4",
        quant_storage: torch.dtype = torch.uint8,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__(input_features, output_features, bias, device)
        self.weight = Params4bit(
            self.weight.data,
            compress_statistics=compress_statistics,
            quant_type=quant_type,
            quant_storage=quant_storage,
        )
        self.compute_dtype = compute_dtype

    @property
    def quant_state(self) -> QuantState | None:
        """The statistics of the weight; None before it is quantized. They can be set; None leaves what is there."""
        return getattr(self.weight, "quant_state", None)

    @quant_state.setter
    def quant_state(self, state: QuantState | None) -> None:
        if state is not None and state is not self.quant_state:
            self.weight = self.weight.replaced(quant_state=state, bnb_quantized=True)

    @property
    def quant_storage(self) -> torch.dtype:
        """The dtype the packed codes are viewed as."""
        return self.weight.quant_storage

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, compute_dtype = self._operand("weight"), self._operand("bias"), self.compute_dtype
        state = getattr(weight, "quant_state", None)
        if state is None:
            state = self._statistics("quant_state", Params4bit)
        if compute_dtype is None or compute_dtype == x.dtype:  # a cast that changes nothing takes 1.3 µs
            return matmul_4bit(x, weight, state, None, bias)
        if x.dtype == torch.float32 and not torch.compiler.is_compiling():
            _tell_of_rounding(compute_dtype, self.training)
        return matmul_4bit(x.to(compute_dtype), weight, state, None, bias).to(x.dtype)


_told: set[bool] = set()


def _tell_of_rounding(compute_dtype: torch.dtype, training: bool) -> None:
    """Warns once in training and once in inference."""
    if training not in _told:
        _told.add(training)
        warnings.warn(
            f"Linear4bit got an input in float32 in {'training' if training else 'inference'}, and rounds it to its "
            f"compute_dtype {str(compute_dtype).removeprefix('torch.')}: cast the model, or give compute_dtype=None",
            stacklevel=5,
        )


class _LinearOfType(Linear4bit):
    """`Linear4bit` whose type is that of the class."""

    fixed_type: ClassVar[str]

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        compute_dtype: torch.dtype | None = None,
        compress_statistics: bool = True,
        quant_storage: torch.dtype = torch.uint8,
        device: torch.device | str | int | None = None,
    ) -> None:
        quantizing = (compress_statistics, self.fixed_type, quant_storage)
        super().__init__(input_features, output_features, bias, compute_dtype, *quantizing, device)


class LinearNF4(_LinearOfType):
    """`Linear4bit` with the NF4 type."""

    fixed_type = "nf4"


class LinearFP4(_LinearOfType):
    """`Linear4bit` with the FP4 type."""

    fixed_type = "fp4"
