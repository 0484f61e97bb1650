"""Differentiable products with quantized weights.

The functions call their operator directly where no gradient is wanted. Where one is, a `torch.autograd.Function` with
`setup_context` and `vmap` stands around it, so that torch.compile, torch.func and activation checkpointing see through.
Gradients reach activations and bias; a weight has one only where it is kept in 16 or 32 bits. The weight's rounding
counts as the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from .functional.buffers import copied_to
from .quant_state import QuantState, dequantized_scales

__all__ = ["MatmulLtState", "grouped_matmul_4bit", "matmul", "matmul_4bit"]

# Operators are called by their overload, `.default`: resolving it takes up to 20 µs a call.
_ops = torch.ops.bnb_core


def _traced(*tensors: Tensor | None) -> bool:
    """True where autograd or a torch.func transform has to see the call."""
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.is_grad_enabled():
        if torch.compiler.is_compiling():
            return True
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def applied(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply`, for positional arguments.

    That one inspects the signature of `forward` in every call of a function with `setup_context`, to bind defaults that
    ours do not have: 55 of its 65 µs.
    """
    if torch.compiler.is_compiling():
        # What torch.func.grad differentiates by counts there as a tensor without a gradient; a view of it does not.
        return function.apply(*(_view(arg) for arg in args))
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]  # its own base


def _view(argument: Any) -> Any:
    return argument.view_as(argument) if isinstance(argument, Tensor) and argument.is_floating_point() else argument


_NO_OUT = "a product that is differentiated takes no out"


def rows_of(tensor: Tensor) -> Tensor:
    """All leading dimensions as one."""
    return tensor.flatten(0, -2) if tensor.ndim > 1 else tensor.unsqueeze(0)


def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)


# Dynamo calls it instead of tracing it, which torch < 2.13 cannot. As torch.compiler.assume_constant_result does, which
# would import Dynamo here.
_has_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on a device, None where it is off."""
    kind = device.type
    on = _has_autocast(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` in their own dtype, under autocast too: a compiled backward pass runs in that of its forward pass."""
    if autocast_dtype(a.device) is None:
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def bias_gradient(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    return rows_of(gradient).sum(0, dtype=dtype)


def vmap_rule(
    function: type[torch.autograd.Function],
    rows_independent: bool,
    info: Any,
    in_dims: tuple[Any, ...],
    args: tuple[Any, ...],
) -> tuple[Tensor, int]:
    """The vmap rule: a batch of activations is more rows of them; anything else goes one by one."""
    only_activations = isinstance(in_dims[0], int) and not any(isinstance(dim, int) for dim in in_dims[1:])
    if rows_independent and only_activations:
        return function.apply(args[0].movedim(in_dims[0], 0), *args[1:]), 0
    results = []
    for i in range(info.batch_size):
        slices = (arg.select(dim, i) if isinstance(dim, int) else arg for arg, dim in zip(args, in_dims, strict=True))
        results.append(function.apply(*slices))
    return torch.stack(results), 0


# -- 4-bit -----------------------------------------------------------------------------------------------------------


class _Gemm4bit(torch.autograd.Function):
    """`gemm_4bit` with gradients of A and bias: dequantize and multiply."""

    @staticmethod
    def forward(
        A: Tensor,
        B: Tensor,
        bias: Tensor | None,
        absmax: Tensor,
        absmax_8bit: Tensor | None,
        absmax_code: Tensor | None,
        absmax_offset: Tensor | None,
        shape: tuple[int, ...],
        blocksize: int,
        quant_type: str,
    ) -> Tensor:
        return _ops.gemm_4bit.default(
            A, B, shape, absmax, blocksize, quant_type, bias, absmax_8bit, absmax_code, absmax_offset
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, B, bias, absmax, absmax_8bit, absmax_code, absmax_offset, *ctx.weight = inputs
        ctx.save_for_backward(B, absmax, absmax_8bit, absmax_code, absmax_offset)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grad_A = grad_bias = None
        if ctx.needs_input_grad[0]:
            B, *statistics = ctx.saved_tensors
            shape, blocksize, quant_type = ctx.weight
            scales = dequantized_scales(*statistics)
            weight = _ops.dequantize_4bit.default(B, scales, blocksize, quant_type, shape, gradient.dtype)
            grad_A = product(gradient, weight)
        if ctx.needs_input_grad[2]:
            grad_bias = bias_gradient(gradient, ctx.bias_dtype)
        return grad_A, None, grad_bias, *(None,) * 7

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return vmap_rule(_Gemm4bit, True, info, in_dims, args)


def matmul_4bit(
    A: Tensor, B: Tensor, quant_state: QuantState, out: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """`A @ W.T + bias` for packed 4-bit codes B of a weight W `[N, K]`.

    A: fp32, fp16 or bf16 `[…, K]`. B: the packed codes, or their transpose `[1, n]`. bias: `[N]`, any of the float
    dtypes. Returns `[…, N]` in A's dtype, summed in fp32 and rounded once. Differentiable in A and bias.

    Raises ValueError for `out` where a gradient is wanted and for a state of other than 4-bit codes, RuntimeError from
    the operator's check.
    """
    shape, blocksize, quant_type = quant_state.four_bit_format()
    absmax, *nested = quant_state.statistics()
    sizes = tuple(shape)  # for a torch.Size the dispatcher takes 1.4 µs more
    if _traced(A, bias):
        if out is not None:
            raise ValueError(_NO_OUT)
        return applied(_Gemm4bit, A, B, bias, absmax, *nested, sizes, blocksize, quant_type)
    args = (A, B, sizes, absmax, blocksize, quant_type, bias, *nested)
    if out is None:
        return _ops.gemm_4bit.default(*args)
    _ops.gemm_4bit.out(*args, out)
    return out


class _GroupedGemm4bit(torch.autograd.Function):
    """`grouped_gemm_4bit` with gradients of A and bias."""

    @staticmethod
    def forward(
        A: Tensor,
        B: Tensor,
        bias: Tensor | None,
        ends: Tensor,
        absmax: Tensor,
        absmax_8bit: Tensor | None,
        absmax_code: Tensor | None,
        absmax_offset: Tensor | None,
        shape: tuple[int, ...],
        blocksize: int,
        quant_type: str,
        input_gradient: bool,
    ) -> Tensor:
        rest = (absmax_8bit, absmax_code, absmax_offset, input_gradient)
        return _ops.grouped_gemm_4bit.default(A, B, shape, absmax, blocksize, quant_type, ends, bias, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, B, bias, ends, absmax, absmax_8bit, absmax_code, absmax_offset, *ctx.weight = inputs
        ctx.save_for_backward(B, ends, absmax, absmax_8bit, absmax_code, absmax_offset)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grad_A = grad_bias = None
        B, ends, *statistics = ctx.saved_tensors
        shape, blocksize, quant_type, input_gradient = ctx.weight
        if ctx.needs_input_grad[0]:
            weight = (shape, blocksize, quant_type, not input_gradient)
            grad_A = applied(_GroupedGemm4bit, gradient, B, None, ends, *statistics, *weight)
        if ctx.needs_input_grad[2]:
            # Rows of no group go to one more, which is dropped.
            rows = torch.arange(gradient.shape[0], device=ends.device, dtype=ends.dtype)
            sums = gradient.new_zeros(shape[0] + 1, shape[1], dtype=torch.float32)
            sums.index_add_(0, torch.searchsorted(ends.contiguous(), rows, right=True), gradient.float())
            grad_bias = sums[:-1].to(ctx.bias_dtype)
        return grad_A, None, grad_bias, *(None,) * 9

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return vmap_rule(_GroupedGemm4bit, False, info, in_dims, args)


def grouped_matmul_4bit(
    A: Tensor, B: Tensor, quant_state: QuantState, ends: Tensor, bias: Tensor | None = None
) -> Tensor:
    """`A[group] @ W[group].T + bias[group]` for packed 4-bit codes B of weights W `[E, N, K]`.

    A: fp32, fp16 or bf16 `[T, K]`, its rows sorted by group. ends: int32 or int64 `[E]`, the row after the last one of
    each group; rows after the last group give zeros. bias: `[E, N]`. Returns `[T, N]` in A's dtype. Differentiable in A
    and bias.

    Raises ValueError for a state of other than 4-bit codes, RuntimeError from the operator's check, IndexError for
    ends that are not ascending or beyond T.
    """
    shape, blocksize, quant_type = quant_state.four_bit_format()
    absmax, *nested = quant_state.statistics()
    if _traced(A, bias):
        return applied(_GroupedGemm4bit, A, B, bias, ends, absmax, *nested, tuple(shape), blocksize, quant_type, False)
    return _ops.grouped_gemm_4bit.default(A, B, tuple(shape), absmax, blocksize, quant_type, ends, bias, *nested)


# -- int8 ------------------------------------------------------------------------------------------------------------


class _Int8Linear(torch.autograd.Function):
    """`int8_linear` with gradients of A and bias."""

    @staticmethod
    def forward(A: Tensor, CB: Tensor, SCB: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
        return _ops.int8_linear.default(A, CB, SCB, bias, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, CB, SCB, bias, _ = inputs
        ctx.save_for_backward(CB, SCB)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grad_A = grad_bias = None
        if ctx.needs_input_grad[0]:
            weight = _ops.int8_vectorwise_dequant.default(*ctx.saved_tensors)
            grad_A = product(gradient, weight.to(gradient.dtype))
        if ctx.needs_input_grad[3]:
            grad_bias = bias_gradient(gradient, ctx.bias_dtype)
        return grad_A, None, None, grad_bias, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        # With a threshold the outlier columns are those of all rows of a call together.
        return vmap_rule(_Int8Linear, args[-1] == 0, info, in_dims, args)


def int8_linear(A: Tensor, CB: Tensor, SCB: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """The operator `int8_linear`, differentiable in A and bias."""
    if _traced(A, bias):
        return applied(_Int8Linear, A, CB, SCB, bias, threshold)
    return _ops.int8_linear.default(A, CB, SCB, bias, threshold)


class _Int8LinearOfWeight(torch.autograd.Function):
    """`int8_linear` with a weight that is quantized on the way, with gradients of A, weight and bias."""

    @staticmethod
    def forward(A: Tensor, W: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
        CB, SCB, _ = _ops.int8_vectorwise_quant.default(W)
        return _ops.int8_linear.default(A, CB, SCB, bias, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        A, W, bias, _ = inputs
        ctx.save_for_backward(A if ctx.needs_input_grad[1] else None, W)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        A, W = ctx.saved_tensors
        grad_A = grad_W = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_A = product(gradient, W.to(gradient.dtype))
        if ctx.needs_input_grad[1]:
            grad_W = product(rows_of(gradient).mT, rows_of(A)).to(W.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = bias_gradient(gradient, ctx.bias_dtype)
        return grad_A, grad_W, grad_bias, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return vmap_rule(_Int8LinearOfWeight, args[-1] == 0, info, in_dims, args)


def int8_linear_of_weight(A: Tensor, W: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """`int8_linear` of a weight `[N, K]` in 16 or 32 bits, quantized on the way; differentiable in all three."""
    if _traced(A, W, bias):
        return applied(_Int8LinearOfWeight, A, W, bias, threshold)
    return _Int8LinearOfWeight.forward(A, W, bias, threshold)


@dataclass(eq=False)
class MatmulLtState:
    """What `matmul` knows of its weight.

    CB, SCB: its int8 codes `[N, K]` and fp32 scales `[N]`. threshold: activations of at least this magnitude make
    their column an outlier, computed in 16 or 32 bits; 0 for none. has_fp16_weights: the weight is kept as it is,
    quantized in each product, and has a gradient; else it is quantized once, into CB and SCB.
    """

    CB: Tensor | None = None
    SCB: Tensor | None = None
    threshold: float = 0.0
    has_fp16_weights: bool = True

    def reset_grads(self) -> None:
        """Forgets the quantized weight."""
        self.CB = self.SCB = None


def matmul(
    A: Tensor,
    B: Tensor,
    out: Tensor | None = None,
    state: MatmulLtState | None = None,
    threshold: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """`A @ B.T + bias` by LLM.int8() (arXiv:2208.07339): rows quantized to int8, outlier columns in A's dtype.

    A: fp32, fp16 or bf16 `[…, K]`. B: weight `[N, K]`; without fp16 weights it is quantized into the state once, or is
    the int8 codes whose scales the state has. threshold: that of this product where above 0, else that of the state.
    Returns `[…, N]` in A's dtype. Differentiable in A and bias, and in B where the state has fp16 weights (its
    default).

    Raises ValueError for `out` of another shape, dtype or device or where a gradient is wanted, and for codes without
    scales; RuntimeError from the operator's check.
    """
    state = MatmulLtState() if state is None else state
    threshold = threshold if threshold > 0 else state.threshold
    if out is not None and _traced(A, B, bias):
        raise ValueError(_NO_OUT)
    if state.has_fp16_weights:
        return copied_to(out, int8_linear_of_weight(A, B, bias, threshold))
    return copied_to(out, int8_linear(A, *_codes(B, state), bias, threshold))


def _codes(B: Tensor, state: MatmulLtState) -> tuple[Tensor, Tensor]:
    """Codes and scales of the state, which it is given here where it has none."""
    CB, SCB = state.CB, state.SCB
    if CB is None and B.dtype == torch.int8:
        CB = B
    elif CB is None:
        CB, SCB, _ = _ops.int8_vectorwise_quant.default(B.detach())
    if SCB is None:
        raise ValueError("the weight is int8 codes, but the state has no SCB: their scales")
    state.CB, state.SCB = CB, SCB
    return CB, SCB
