"""Linear layers that train in int8 (SwitchBack, arXiv:2304.13013).

The products of the forward pass and of the input's gradient are those of int8 codes; that of the weight's gradient,
whose sums are long, is in 16 or 32 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnb_core.autograd import applied, bias_gradient, int8_linear, product, rows_of, vmap_rule

from .layer import QuantizedLayer
from .params import Int8Params

__all__ = ["SwitchBackLinear", "SwitchBackLinearGlobal", "SwitchBackLinearVectorwise"]

_ops = torch.ops.bnb_core


def _quantized(W: Tensor, row_wise: bool) -> tuple[Tensor, Tensor]:
    """int8 codes of W and the fp32 scale of each row: its own, or that of the whole matrix."""
    if row_wise:
        codes, scales, _ = _ops.int8_vectorwise_quant.default(W)
        return codes, scales
    codes, scale, _ = _ops.int8_vectorwise_quant.default(W.reshape(1, -1))
    return codes.view(W.shape), scale.expand(W.shape[0]).contiguous()


class _SwitchBack(torch.autograd.Function):
    """`A @ W.T + bias` in int8. rows, row_scales: codes of A, kept for the weight's gradient in the place of A."""

    @staticmethod
    def forward(
        A: Tensor, W: Tensor, bias: Tensor | None, row_wise: bool, rows: Tensor | None, row_scales: Tensor | None
    ) -> Tensor:
        return _ops.int8_linear.default(A, *_quantized(W, row_wise), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        A, W, bias, ctx.row_wise, rows, row_scales = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        kept = (A,) if rows is None else (rows, row_scales)
        ctx.save_for_backward(W, *(kept if ctx.needs_input_grad[1] else ()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        W, *kept = ctx.saved_tensors
        grad_A = grad_W = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_A = applied(_SwitchBack, gradient, W.t().contiguous(), None, ctx.row_wise, None, None)
        if ctx.needs_input_grad[1]:
            A = kept[0] if len(kept) == 1 else _ops.int8_vectorwise_dequant.default(*kept).to(gradient.dtype)
            grad_W = product(rows_of(gradient).mT, rows_of(A)).to(W.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = bias_gradient(gradient, ctx.bias_dtype)
        return grad_A, grad_W, grad_bias, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return vmap_rule(_SwitchBack, True, info, in_dims, args)


class SwitchBackLinear(QuantizedLayer, torch.nn.Linear):
    """A linear layer that is trained in int8 (SwitchBack, arXiv:2304.13013); a linear layer's arguments and weight.

    vector_wise_quantization: the weight has a scale for each row, and its transpose in the backward pass one for each
    column; else one for all. mem_efficient: the int8 codes of the input are kept for the backward pass, in its place;
    not under vmap, and second derivatives lack what goes through the input.

    The input is `[…, in_features]` in fp32, fp16 or bf16, the output in the same dtype; rows of input and gradient have
    scales of their own. Input, weight and bias have gradients. A checkpoint of a layer after `prepare_for_eval` makes
    that of a layer before it.
    """

    weight: Any  # an ordinary parameter, until prepare_for_eval

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        vector_wise_quantization: bool = False,
        mem_efficient: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.vector_wise_quantization = vector_wise_quantization
        self.mem_efficient = mem_efficient

    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare_for_eval(self) -> None:
        """Quantizes the weight for good: a quarter or half of its memory, and no gradient any more."""
        codes, scales = _quantized(self.weight, self.vector_wise_quantization)
        self.weight = Int8Params(codes, requires_grad=False, SCB=scales)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        weight = self.weight
        prepares = prefix + "SCB" in state_dict and not isinstance(weight, Int8Params)
        if prepares:
            self.weight = Int8Params(weight.data, requires_grad=False)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if prepares and not self.weight.quantized:  # it was refused
            self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._operand("weight"), self._operand("bias")
        scales = getattr(weight, "SCB", None)
        if scales is not None:
            return int8_linear(x, weight, scales, bias, threshold=0.0)
        rows = row_scales = None
        if self.mem_efficient and torch.is_grad_enabled():
            rows, row_scales, _ = _ops.int8_vectorwise_quant.default(x.detach())
        out: Tensor = applied(_SwitchBack, x, weight, bias, self.vector_wise_quantization, rows, row_scales)
        return out


class SwitchBackLinearGlobal(SwitchBackLinear):
    """`SwitchBackLinear` with one scale for the weight."""


class SwitchBackLinearVectorwise(SwitchBackLinear):
    """`SwitchBackLinear` with a scale for each row of the weight."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"vector_wise_quantization": True, **options})
