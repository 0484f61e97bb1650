"""The functions beneath the layers: quantizing and dequantizing, products with quantized matrices, optimizer updates.

Names and arguments follow the public package. Each function is a thin form of an operator of `bnb_core.ops_registry`,
which checks its inputs and raises RuntimeError with a sentence; arguments that only concern this module raise
ValueError. Buffers given as `out=` or `absmax=` are filled and returned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ops_registry import codebooks
from .ops_registry.checks import ceil_div
from .quant_state import NESTED_BLOCKSIZE, QuantState, pack_dict_to_tensor, unpack_tensor_to_dict

__all__ = [
    "QuantState",
    "batched_igemm",
    "create_dynamic_map",
    "create_fp8_map",
    "create_linear_map",
    "create_normal_map",
    "create_quantile_map",
    "dequantize",
    "dequantize_4bit",
    "dequantize_blockwise",
    "dequantize_fp4",
    "dequantize_nf4",
    "dequantize_no_absmax",
    "double_quant",
    "estimate_quantiles",
    "gemv_4bit",
    "get_4bit_type",
    "igemm",
    "igemmlt",
    "int8_double_quant",
    "int8_linear_matmul",
    "int8_mm_dequant",
    "int8_vectorwise_dequant",
    "int8_vectorwise_quant",
    "mm_dequant",
    "optimizer_update_32bit",
    "optimizer_update_8bit_blockwise",
    "pack_dict_to_tensor",
    "percentile_clipping",
    "quantize",
    "quantize_4bit",
    "quantize_blockwise",
    "quantize_fp4",
    "quantize_nf4",
    "quantize_no_absmax",
    "unpack_tensor_to_dict",
    "vectorwise_dequant",
    "vectorwise_quant",
]

DEFAULT_4BIT_BLOCKSIZE = 64

# The largest int8 code of a row.
C = 127.0

_ops = torch.ops.bnb_core


def copied_to(out: Tensor | None, value: Tensor, name: str = "out") -> Tensor:
    """`value`, in `out` where one is given. Raises ValueError where that has another shape, dtype or device."""
    if out is None:
        return value
    if (out.shape, out.dtype, out.device) != (value.shape, value.dtype, value.device):
        raise ValueError(
            f"{name} is {out.dtype} {tuple(out.shape)} on {out.device}, "
            f"expected {value.dtype} {tuple(value.shape)} on {value.device}"
        )
    return out.copy_(value)


# -- tables ----------------------------------------------------------------------------------------------------------


def create_dynamic_map(signed: bool = True, max_exponent_bits: int = 7, total_bits: int = 8) -> Tensor:
    """The dynamic (tree) map of 8-bit optimizers (arXiv:2110.02861): fp32 `[256]`, ascending, on the CPU."""
    return codebooks.dynamic_map(signed, max_exponent_bits, total_bits).clone()


def create_linear_map(signed: bool = True, total_bits: int = 8, add_zero: bool = True) -> Tensor:
    """Evenly spaced values of [-1, 1], or of [0, 1] for unsigned ones: fp32 `[256]` on the CPU."""
    return codebooks.linear_map(signed, total_bits, add_zero).clone()


def create_normal_map(offset: float = 0.9677083, use_extra_value: bool = True) -> Tensor:
    """Quantiles of a normal distribution (NF4, arXiv:2305.14314) among zeros: fp32 `[256]`, ascending, on the CPU."""
    return codebooks.normal_map(offset, use_extra_value).clone()


def create_fp8_map(signed: bool = True, exponent_bits: int = 5, precision_bits: int = 2, total_bits: int = 8) -> Tensor:
    """The values of a small floating-point format over its largest: fp32 `[256]`, ascending, on the CPU."""
    return codebooks.fp8_map(signed, exponent_bits, precision_bits, total_bits).clone()


def create_quantile_map(A: Tensor, total_bits: int = 8) -> Tensor:
    """A map of the quantiles of A and zero, over the largest magnitude: fp32 `[256]`, ascending, on A's device."""
    quantiles = estimate_quantiles(A, num_quantiles=2**total_bits - 1)
    values = torch.cat([quantiles, quantiles.new_zeros(256 - quantiles.numel())])
    return values.sort().values / values.abs().max()


def get_4bit_type(typename: str, device: torch.device | str | None = None, blocksize: int = 64) -> Tensor:
    """The 16 values of `nf4`, `fp4` or `af4` (the last made for blocks of 64), fp32, entry i for code i.

    Raises NotImplementedError for another type, or `af4` with another block size.
    """
    if typename not in codebooks.FOUR_BIT or (typename == "af4" and blocksize != 64):
        raise NotImplementedError(f"there is no 4-bit type {typename!r} for blocks of {blocksize}")
    return codebooks.four_bit(typename, "cpu" if device is None else device).clone()


# -- 8-bit blockwise -------------------------------------------------------------------------------------------------


def quantize_blockwise(
    A: Tensor,
    code: Tensor | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int = 4096,
    nested: bool = False,
) -> tuple[Tensor, QuantState]:
    """Quantizes to uint8 codes, each block of `blocksize` elements by its own largest magnitude.

    A: fp32, fp16 or bf16, any shape. code: fp32 `[1…256]`; None: the signed dynamic map. nested: quantizes the scales
    too. Returns codes of A's shape, and the state for `dequantize_blockwise`.

    Raises ValueError for `absmax` with `nested`, whose scales are not fp32.
    """
    if nested and absmax is not None:
        raise ValueError("absmax receives fp32 scales, which nested=True does not keep")
    code = create_dynamic_map().to(A.device) if code is None else code.to(A.device)
    if out is None and absmax is None:
        out, absmax = _ops.quantize_blockwise(A, code, blocksize)
    else:
        out = torch.empty(A.shape, dtype=torch.uint8, device=A.device) if out is None else out
        absmax = A.new_empty(ceil_div(A.numel(), blocksize), dtype=torch.float32) if absmax is None else absmax
        _ops.quantize_blockwise.out(A, code, blocksize, out, absmax)
    state = QuantState(absmax, code=code, blocksize=blocksize, dtype=A.dtype)
    return out, _with_nested_scales(state, blocksize) if nested else state


def dequantize_blockwise(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    code: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int = 4096,
    nested: bool = False,
) -> Tensor:
    """The values of blockwise uint8 codes.

    With a `quant_state` it says all the rest; else `absmax`, `code` (None: the signed dynamic map) and `blocksize` do.
    The result has the dtype of `out`, of the state, or fp32.

    Raises ValueError for both or neither of `quant_state` and `absmax`, and for `nested` without a nested state.
    """
    if (quant_state is None) == (absmax is None):
        raise ValueError("give either quant_state or absmax")
    if quant_state is None:
        assert absmax is not None
        code = create_dynamic_map().to(A.device) if code is None else code.to(A.device)
        quant_state = QuantState(absmax, code=code, blocksize=blocksize, dtype=torch.float32)
    if nested and not quant_state.nested:
        raise ValueError("nested=True needs a quant_state with nested statistics")
    args = (A, quant_state.scales(), quant_state.code, quant_state.blocksize)
    if out is None:
        return _ops.dequantize_blockwise(*args, quant_state.dtype)
    _ops.dequantize_blockwise.out(*args, out.dtype, out)
    return out


def _with_nested_scales(state: QuantState, blocksize: int) -> QuantState:
    """The state with its scales quantized: their differences from the mean, in blocks of the dynamic map.

    The mean is that of the finite scales, so that one that is not poisons no group but its own.
    """
    finite = torch.isfinite(state.absmax)
    offset = torch.where(finite, state.absmax, 0.0).sum() / finite.sum().clamp(min=1)
    absmax, state2 = quantize_blockwise(state.absmax - offset, blocksize=blocksize)
    return QuantState(
        absmax, state.shape, state.code, state.blocksize, state.quant_type, state.dtype, offset=offset, state2=state2
    )


# -- 4-bit -----------------------------------------------------------------------------------------------------------


def quantize_4bit(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_type: str = "fp4",
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """Quantizes to 4-bit codes, two to a byte (QLoRA, arXiv:2305.14314).

    A: fp32, fp16 or bf16, any shape. blocksize: 16, 32, … 4096, by default 64. quant_type: `nf4` or `fp4`.
    compress_statistics: quantizes the scales too, in groups of 256. quant_storage: the dtype the bytes are viewed as.
    Returns the packed codes `[…, 1]` and the state for `dequantize_4bit`.

    Raises ValueError for `absmax` with `compress_statistics`, or a buffer of the wrong shape, dtype or device.
    """
    if compress_statistics and absmax is not None:
        raise ValueError("absmax receives fp32 scales, which compress_statistics=True does not keep")
    blocksize = DEFAULT_4BIT_BLOCKSIZE if blocksize is None else blocksize
    packed, scales = _ops.quantize_4bit(A, blocksize, quant_type, quant_storage)
    packed, scales = copied_to(out, packed), copied_to(absmax, scales, "absmax")
    state = QuantState(scales, A.shape, get_4bit_type(quant_type, A.device), blocksize, quant_type, A.dtype)
    return packed, _with_nested_scales(state, NESTED_BLOCKSIZE) if compress_statistics else state


def quantize_nf4(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """`quantize_4bit` to NF4."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "nf4", quant_storage)


def quantize_fp4(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """`quantize_4bit` to FP4."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "fp4", quant_storage)


def dequantize_4bit(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    quant_type: str = "fp4",
) -> Tensor:
    """The values of packed 4-bit codes.

    With a `quant_state` it says all the rest, quant_type included. Else `absmax`, `blocksize` and `quant_type` do, and
    `out` shape and dtype. Packed codes that were transposed to `[1, n]` give the transpose.

    Raises ValueError for both or neither of `quant_state` and `absmax`, `absmax` without `out`, or a `blocksize` that
    is not that of the state.
    """
    if (quant_state is None) == (absmax is None):
        raise ValueError("give either quant_state or absmax")
    if quant_state is None:
        assert absmax is not None
        if out is None:
            raise ValueError("without a quant_state, out must say shape and dtype")
        blocksize = DEFAULT_4BIT_BLOCKSIZE if blocksize is None else blocksize
        quant_state = QuantState(absmax, out.shape, None, blocksize, quant_type, out.dtype)
    if blocksize is not None and blocksize != quant_state.blocksize:
        raise ValueError(f"blocksize is {blocksize}, but that of quant_state is {quant_state.blocksize}")
    args = (A, quant_state.scales(), quant_state.blocksize, quant_state.quant_type, quant_state.shape)
    if out is None:
        out = _ops.dequantize_4bit(*args, quant_state.dtype)
    else:
        _ops.dequantize_4bit.out(*args, out.dtype, out)
    transposed = A.ndim == 2 and A.shape[0] == 1 and A.shape[1] > 1
    return out.t() if transposed else out


def dequantize_nf4(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
) -> Tensor:
    """`dequantize_4bit` of NF4 codes. Raises ValueError for a state of another type."""
    return _dequantize_type("nf4", A, quant_state, absmax, out, blocksize)


def dequantize_fp4(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
) -> Tensor:
    """`dequantize_4bit` of FP4 codes. Raises ValueError for a state of another type."""
    return _dequantize_type("fp4", A, quant_state, absmax, out, blocksize)


def _dequantize_type(
    quant_type: str,
    A: Tensor,
    quant_state: QuantState | None,
    absmax: Tensor | None,
    out: Tensor | None,
    blocksize: int | None,
) -> Tensor:
    if quant_state is not None and quant_state.quant_type != quant_type:
        raise ValueError(f"quant_state is of {quant_state.quant_type}, expected {quant_type}")
    return dequantize_4bit(A, quant_state, absmax, out, blocksize, quant_type)


def gemv_4bit(
    A: Tensor,
    B: Tensor,
    out: Tensor | None = None,
    transposed_A: bool = False,
    transposed_B: bool = False,
    state: QuantState | None = None,
) -> Tensor:
    """`A @ W.T` for packed 4-bit codes B of a weight W of shape `state.shape` = `[N, K]`; A is `[…, K]`, any rows.

    Raises ValueError without a state, or for a transposed operand.
    """
    if state is None:
        raise ValueError("state is needed: it has the statistics of B")
    if transposed_A or transposed_B:
        raise ValueError("A and B are taken as they are: transposed_A and transposed_B must be False")
    absmax, *nested = state.statistics()
    args = (A, B, state.shape, absmax, state.blocksize, state.quant_type, None, *nested)
    if out is None:
        return _ops.gemm_4bit(*args)
    _ops.gemm_4bit.out(*args, out)
    return out


# -- int8 ------------------------------------------------------------------------------------------------------------


def int8_vectorwise_quant(A: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantizes each row of A to int8 by its largest magnitude (LLM.int8(), arXiv:2208.07339).

    A: fp32, fp16 or bf16 `[…, K]`. threshold: columns with a magnitude of at least this are left out of the scales,
    and their codes are zero. Returns codes, fp32 scales `[rows]`, and the indices of those columns (None for threshold
    0).
    """
    return _ops.int8_vectorwise_quant(A, threshold)


def int8_vectorwise_dequant(A: Tensor, stats: Tensor) -> Tensor:
    """The values of row-wise int8 codes: `A * stats / 127` by row, fp32."""
    return _ops.int8_vectorwise_dequant(A, stats)


def int8_double_quant(
    A: Tensor,
    col_stats: Tensor | None = None,
    row_stats: Tensor | None = None,
    out_col: Tensor | None = None,
    out_row: Tensor | None = None,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Quantizes A to int8 by rows and by columns.

    Returns codes by row, codes by column, fp32 scales of the rows, of the columns, and the indices of the outlier
    columns (None for threshold 0). Raises ValueError for a buffer of the wrong shape, dtype or device.
    """
    q_row, q_col, rows, cols, outliers = _ops.int8_double_quant(A, threshold)
    return (
        copied_to(out_row, q_row, "out_row"),
        copied_to(out_col, q_col, "out_col"),
        copied_to(row_stats, rows, "row_stats"),
        copied_to(col_stats, cols, "col_stats"),
        outliers,
    )


def int8_linear_matmul(A: Tensor, B: Tensor, out: Tensor | None = None, dtype: torch.dtype = torch.int32) -> Tensor:
    """`A @ B.T` of int8 matrices `[…, K]` and `[N, K]`, exact, int32. Raises ValueError for another dtype."""
    if dtype != torch.int32:
        raise ValueError(f"dtype is {dtype}, expected torch.int32")
    if out is None:
        return _ops.int8_mm(A, B)
    _ops.int8_mm.out(A, B, out)
    return out


def int8_mm_dequant(
    A: Tensor, row_stats: Tensor, col_stats: Tensor, out: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The values of an int32 product of row-wise quantized matrices, plus bias: in the dtype of `out`, or fp16.

    A: int32 `[…, N]`. row_stats, col_stats: fp32 scales of the rows and of the columns.
    """
    dtype = None if out is None else out.dtype
    return copied_to(out, _ops.int8_mm_dequant(A, row_stats, col_stats, dtype, bias))


def igemm(
    A: Tensor, B: Tensor, out: Tensor | None = None, transposed_A: bool = False, transposed_B: bool = False
) -> Tensor:
    """Exact int32 product of int8 matrices.

    `[…, K] @ [K, N]`, each transposed first where its flag says so; two operands of three dimensions `[b, s, i]` and
    `[b, s, o]` are contracted over both b and s to `[i, o]`. Raises ValueError for flags with the latter.
    """
    if A.ndim == 3 and B.ndim == 3:
        if transposed_A or transposed_B:
            raise ValueError("a contraction of two operands of three dimensions takes no transposed operand")
        return int8_linear_matmul(A.flatten(0, 1).t(), B.flatten(0, 1).t(), out)
    return int8_linear_matmul(A.mT if transposed_A else A, B if transposed_B else B.mT, out)


def batched_igemm(
    A: Tensor, B: Tensor, out: Tensor | None = None, transposed_A: bool = False, transposed_B: bool = False
) -> Tensor:
    """Exact int32 products of int8 matrices, `[b, M, K] @ [b, K, N]`, each transposed first where its flag says so.

    Raises ValueError for operands of other than three dimensions, or of different b.
    """
    if A.ndim != 3 or B.ndim != 3 or A.shape[0] != B.shape[0]:
        raise ValueError(f"A and B have shapes {tuple(A.shape)} and {tuple(B.shape)}, expected [b, …, …] twice")
    left, right = A.mT if transposed_A else A, B if transposed_B else B.mT
    if out is None:
        out = torch.empty(A.shape[0], left.shape[1], right.shape[1], dtype=torch.int32, device=A.device)
    for product, a, b in zip(out, left, right, strict=True):
        int8_linear_matmul(a, b, product)
    return out


# -- optimizers ------------------------------------------------------------------------------------------------------


def optimizer_update_32bit(
    optimizer_name: str,
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    beta1: float,
    eps: float,
    step: int,
    lr: float,
    state2: Tensor | None = None,
    beta2: float = 0.0,
    beta3: float = 0.0,
    alpha: float = 0.0,
    weight_decay: float = 0.0,
    gnorm_scale: float = 1.0,
    unorm_vec: Tensor | None = None,
    max_unorm: float = 0.0,
    skip_zeros: bool = False,
) -> None:
    """One step of an optimizer with fp32 state, in place on p, the states and unorm_vec.

    g, p: fp32, fp16 or bf16. With max_unorm > 0 the norm of p is read on the host.
    """
    param_norm = torch.linalg.vector_norm(p, dtype=torch.float32).item() if max_unorm > 0 else 0.0
    _ops.optimizer_update_32bit(
        *(optimizer_name, g, p, state1, state2, unorm_vec, max_unorm, param_norm),
        *(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale, skip_zeros),
    )


def optimizer_update_8bit_blockwise(
    optimizer_name: str,
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: Tensor,
    qmap2: Tensor | None,
    absmax1: Tensor,
    absmax2: Tensor | None,
    weight_decay: float = 0.0,
    gnorm_scale: float = 1.0,
    skip_zeros: bool = False,
) -> None:
    """One step of an optimizer with 8-bit state in blocks of 256 (arXiv:2110.02861), in place as the 32-bit one."""
    _ops.optimizer_update_8bit_blockwise(
        *(optimizer_name, g, p, state1, state2, beta1, beta2, beta3, alpha, eps, step, lr),
        *(qmap1, qmap2, absmax1, absmax2, weight_decay, gnorm_scale, skip_zeros),
    )


def percentile_clipping(
    grad: Tensor, gnorm_vec: Tensor, step: int, percentile: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """Records the norm of grad in gnorm_vec (fp32 `[100]`), in place, and finds the scale that clips it.

    The limit is a percentile of the last 100 norms. Returns the norm, the limit and the scale: 0-dim fp32 tensors.
    """
    return _ops.percentile_clipping(grad, gnorm_vec, step, percentile)


# -- names of older versions -----------------------------------------------------------------------------------------


def estimate_quantiles(
    A: Tensor, out: Tensor | None = None, offset: float = 1 / 512, num_quantiles: int = 256
) -> Tensor:
    """`num_quantiles` quantiles of A at evenly spaced positions from `offset` to `1 - offset`, fp32, ascending."""
    return copied_to(out, _ops.estimate_quantiles(A, offset, num_quantiles))


def quantize(A: Tensor, code: Tensor | None = None, out: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Quantizes to uint8 codes by the largest magnitude of all of A. Returns codes and `(absmax [1], code)`."""
    codes, state = quantize_blockwise(A, code, out=out, blocksize=max(A.numel(), 1))
    assert state.code is not None
    return codes, (state.absmax, state.code)


def dequantize(
    A: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    absmax: Tensor | None = None,
    code: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The values of codes from `quantize`, from its state or from `absmax` and `code`; fp32, or the dtype of `out`.

    Raises ValueError for both or neither of `state` and `absmax`.
    """
    if (state is None) == (absmax is None):
        raise ValueError("give either state or absmax")
    if state is not None:
        absmax, code = state
    assert absmax is not None
    return dequantize_blockwise(A, absmax=absmax.reshape(-1), code=code, out=out, blocksize=max(A.numel(), 1))


def quantize_no_absmax(A: Tensor, code: Tensor, out: Tensor | None = None) -> Tensor:
    """The index of the entry of `code` (ascending) nearest to each value of A; of two equally near ones the lower."""
    return copied_to(out, torch.bucketize(A.float(), (code[1:] + code[:-1]) / 2).to(torch.uint8))


def dequantize_no_absmax(A: Tensor, code: Tensor, out: Tensor | None = None) -> Tensor:
    """`code[A]`."""
    return copied_to(out, code[A.long()])


def vectorwise_quant(x: Tensor, dim: int = 1, quant_type: str = "vector") -> tuple[Tensor, Tensor]:
    """Quantizes to int8 by the largest magnitude along `dim` ("vector", "row") or of all of x ("linear").

    Returns codes and the magnitudes, which keep `dim`. Raises ValueError for another quant_type.
    """
    if quant_type not in ("vector", "row", "linear"):
        raise ValueError(f"quant_type is {quant_type!r}, expected 'vector', 'row' or 'linear'")
    magnitudes = x.abs().float()
    largest = magnitudes.max() if quant_type == "linear" else magnitudes.amax(dim=dim, keepdim=True)
    ratio = torch.where(largest > 0, x / largest, 0.0)
    return torch.round(ratio * C).to(torch.int8), largest


def vectorwise_dequant(xq: Tensor, max1: Tensor, quant_type: str = "vector") -> Tensor:
    """The values of codes from `vectorwise_quant`, fp32. Raises ValueError for another quant_type."""
    if quant_type not in ("vector", "row", "linear"):
        raise ValueError(f"quant_type is {quant_type!r}, expected 'vector', 'row' or 'linear'")
    return xq / C * max1


double_quant = int8_double_quant

Layout = tuple[torch.Size, str]


def _only_rows(*layouts: Layout | None) -> None:
    """Raises ValueError for one of the tiled layouts that older versions had."""
    for layout in layouts:
        if layout is not None and layout[1] != "row":
            raise ValueError(f"the layout is {layout[1]!r}, expected 'row'")


def igemmlt(
    A: Tensor,
    B: Tensor,
    SA: Layout | None,
    SB: Layout | None,
    out: Tensor | None = None,
    Sout: Layout | None = None,
    dtype: torch.dtype = torch.int32,
) -> tuple[Tensor, Layout]:
    """`int8_linear_matmul` with layouts `(shape, "row")`: returns the product and its layout."""
    _only_rows(SA, SB, Sout)
    product = int8_linear_matmul(A, B, out, dtype)
    return product, (product.shape, "row")


def mm_dequant(
    A: Tensor,
    quant_state: Layout | None,
    row_stats: Tensor,
    col_stats: Tensor,
    out: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """`int8_mm_dequant` with the layout of A, `(shape, "row")`."""
    _only_rows(quant_state)
    return int8_mm_dequant(A, row_stats, col_stats, out, bias)
