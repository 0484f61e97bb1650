"""Linear layers whose products take operands rounded to 8-bit floats, to study training in them.

Operands are coded with one scale per block, or per tensor, and multiplied as their decoded values: it says what such
training costs in accuracy, and saves nothing. Forward e4m3, backward e5m2, which has more range (arXiv:2209.05433).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnb_core.autograd import applied, autocast_dtype, vmap_rule
from bnb_core.functional import create_fp8_map, dequantize_blockwise, quantize_blockwise
from bnb_core.functional.older import dequantize_no_absmax, quantize_no_absmax

__all__ = ["LinearFP8Global", "LinearFP8Mixed", "matmul_fp8", "row_blocksize"]

BLOCKSIZES = (64, 128, 256, 512, 1024, 2048, 4096)


def _rounded(x: Tensor, code: Tensor, blocksize: int | None) -> Tensor:
    """x at the nearest values of a code, scaled per block of its rows, one after the other, or as a whole."""
    code = code.to(x.device)
    if blocksize is None:
        return _rounded_as_a_whole(x, code)
    codes, state = quantize_blockwise(x, code, blocksize=blocksize)
    return dequantize_blockwise(codes, state)


def _rounded_as_a_whole(x: Tensor, code: Tensor) -> Tensor:
    # The block size of an operator is a constant of a graph: with one block as large as x each size would be compiled.
    if not x.numel():
        return x
    scale = x.abs().amax().float()
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    codes = quantize_no_absmax(x.float() / scale, code)
    return (dequantize_no_absmax(codes, code) * scale).to(x.dtype)


class _Rounded(torch.autograd.Function):
    """`_rounded`, whose gradient is that of the identity."""

    @staticmethod
    def forward(x: Tensor, code: Tensor, blocksize: int | None) -> Tensor:
        return _rounded(x, code, blocksize)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return vmap_rule(_Rounded, False, info, in_dims, args)


class _Product(torch.autograd.Function):
    """`A @ W.T` of rounded operands. blocksizes: for rows as long as those of A, and of the result; None: tensors."""

    @staticmethod
    def forward(A: Tensor, W: Tensor, codes: tuple[Tensor, Tensor], blocksizes: tuple[int, int] | None) -> Tensor:
        along_in, along_out = blocksizes or (None, None)
        return _rounded(A, codes[0], along_in) @ _rounded(W.t().contiguous(), codes[0], along_out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        A, W, ctx.codes, ctx.blocksizes = inputs
        ctx.save_for_backward(A if ctx.needs_input_grad[1] else None, W)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        A, W = ctx.saved_tensors
        grad_A = grad_W = None
        if ctx.needs_input_grad[0]:
            along_out = ctx.blocksizes[1] if ctx.blocksizes else None
            grad_A = applied(_Rounded, gradient, ctx.codes[1], along_out) @ W
        if ctx.needs_input_grad[1]:
            rows = A.reshape(-1, A.shape[-1])
            if ctx.blocksizes is None:
                rows = applied(_Rounded, rows, ctx.codes[1], None)
            grad_W = gradient.reshape(-1, gradient.shape[-1]).t() @ rows
        return grad_A, grad_W, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return vmap_rule(_Product, False, info, in_dims, args)


def row_blocksize(features: int) -> int:
    """The smallest block that holds a row of so many elements, or the largest there is."""
    return next((size for size in BLOCKSIZES if features <= size), BLOCKSIZES[-1])


def matmul_fp8(
    A: Tensor, W: Tensor, fw_code: Tensor, bw_code: Tensor, blocksizes: tuple[int, int] | None = None
) -> Tensor:
    """`A @ W.T` of operands rounded to the values of fw_code, those of the gradients' products to bw_code.

    A: `[…, K]`, W: `[N, K]`, fp32, fp16 or bf16. blocksizes: of the scales along K and along N; None for one scale per
    tensor, where A is rounded for the gradient of W too.
    """
    product: Tensor = applied(_Product, A, W, (fw_code, bw_code), blocksizes)
    return product


class _LinearFP8(torch.nn.Linear):
    """`torch.nn.Linear` with rounded operands."""

    per_block: bool

    def __init__(self, input_features: int, output_features: int, bias: bool = True) -> None:
        super().__init__(input_features, output_features, bias)
        self.fw_code = create_fp8_map(True, 4, 3, 8)
        self.bw_code = create_fp8_map(True, 5, 2, 8)
        self.blocksizes = row_blocksize(input_features), row_blocksize(output_features)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, dtype = self.weight, self.bias, autocast_dtype(x.device)
        if dtype is not None:
            x, weight = x.to(dtype), weight.to(dtype)
        blocksizes = self.blocksizes if self.per_block else None
        product = matmul_fp8(x, weight, self.fw_code, self.bw_code, blocksizes)
        return product if bias is None else product + bias.to(product.dtype)


class LinearFP8Mixed(_LinearFP8):
    """A linear layer whose operands have one scale per block of a row; the gradient of the weight is not rounded.

    The input is `[…, input_features]` in the dtype of the weight, fp32, fp16 or bf16; under autocast both are cast to
    its dtype. Input, weight and bias have gradients.
    """

    per_block = True


class LinearFP8Global(_LinearFP8):
    """`LinearFP8Mixed` with one scale per tensor; for the gradient of the weight the input is rounded too."""

    per_block = False
