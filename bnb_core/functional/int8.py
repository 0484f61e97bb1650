"""LLM.int8(): rows in int8, exact products (arXiv:2208.07339)."""

from __future__ import annotations

import torch
from torch import Tensor

from .buffers import check_buffer, copied_to

__all__ = [
    "batched_igemm",
    "check_matmul",
    "igemm",
    "int8_double_quant",
    "int8_linear_matmul",
    "int8_mm_dequant",
    "int8_vectorwise_dequant",
    "int8_vectorwise_quant",
    "int8_weight_quant",
]

ops = torch.ops.bnb_core


def int8_vectorwise_quant(A: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantizes each row of A to int8 by its largest magnitude (LLM.int8(), arXiv:2208.07339).

    A: fp32, fp16 or bf16 `[…, K]`. threshold: columns with a magnitude of at least this are left out of the scales,
    and their codes are zero. Returns codes, fp32 scales `[rows]`, and the indices of those columns (None for threshold
    0).
    """
    return ops.int8_vectorwise_quant.default(A.detach(), threshold)


# Rows with an absmax in between lose nothing that int8 would keep when they are rounded to fp16.
_FP16_ROWS = (2.0**-10, 65504.0)


def int8_weight_quant(W: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes a weight `[N, K]` in fp32, fp16 or bf16 for storage: int8 codes and fp32 scales `[N]`.

    Rows are rounded to fp16 first, as in the checkpoints that exist, so that the bytes are those of the public package;
    a row too large or too small for that is quantized as it is.

    Raises ValueError for a weight of other than two dimensions.
    """
    if W.ndim != 2:
        raise ValueError(f"the weight has shape {tuple(W.shape)}, expected [N, K]")
    rows = W.detach().float()
    rounded = rows.half().float()
    largest = rounded.abs().amax(dim=1, keepdim=True) if W.shape[1] else rows.new_zeros(W.shape[0], 1)
    least, most = _FP16_ROWS
    codes, scales, _ = ops.int8_vectorwise_quant.default(
        torch.where((largest >= least) & (largest <= most), rounded, rows)
    )
    return codes, scales


def int8_vectorwise_dequant(A: Tensor, stats: Tensor) -> Tensor:
    """The values of row-wise int8 codes: `A * stats / 127` by row, fp32."""
    return ops.int8_vectorwise_dequant.default(A, stats)


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
    q_row, q_col, rows, cols, outliers = ops.int8_double_quant.default(A.detach(), threshold)
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
        return ops.int8_mm.default(A, B)
    ops.int8_mm.out(A, B, out)
    return out


def int8_mm_dequant(
    A: Tensor, row_stats: Tensor, col_stats: Tensor, out: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The values of an int32 product of row-wise quantized matrices, plus bias: in the dtype of `out`, or fp16.

    A: int32 `[…, N]`. row_stats, col_stats: fp32 scales of the rows and of the columns.
    """
    dtype = None if out is None else out.dtype
    return copied_to(out, ops.int8_mm_dequant.default(A, row_stats, col_stats, dtype, bias))


def check_matmul(
    A: Tensor,
    B: Tensor,
    out: Tensor | None,
    transposed_A: bool,
    transposed_B: bool,
    expected_type: torch.dtype = torch.int8,
) -> torch.Size:
    """The shape of `igemm` of the operands. Raises ValueError where their shapes, dtypes or those of out do not fit."""
    if A.dtype != expected_type or B.dtype != expected_type:
        raise ValueError(f"A and B are {A.dtype} and {B.dtype}, expected {expected_type} twice")
    shapes = f"A and B have shapes {tuple(A.shape)} and {tuple(B.shape)}"
    if A.ndim == 3 and B.ndim == 3:
        if transposed_A or transposed_B:
            raise ValueError("a contraction of two operands of three dimensions takes no transposed operand")
        if A.shape[:2] != B.shape[:2]:
            raise ValueError(f"{shapes}, expected [b, s, …] with the same b and s")
        shape = torch.Size((A.shape[2], B.shape[2]))
    elif A.ndim < 2 or B.ndim != 2:
        raise ValueError(f"{shapes}, expected […, M, K] and [K, N], or three dimensions twice")
    else:
        left, right = A.mT.shape if transposed_A else A.shape, B.mT.shape if transposed_B else B.shape
        if left[-1] != right[0]:
            raise ValueError(f"{shapes}, which gives products of {left[-1]} by {right[0]} elements, expected the same")
        shape = torch.Size((*left[:-1], right[1]))
    if out is not None and out.shape != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, expected {tuple(shape)}")
    return shape


def igemm(
    A: Tensor, B: Tensor, out: Tensor | None = None, transposed_A: bool = False, transposed_B: bool = False
) -> Tensor:
    """Exact int32 product of int8 matrices.

    `[…, K] @ [K, N]`, each transposed first where its flag says so; two operands of three dimensions `[b, s, i]` and
    `[b, s, o]` are contracted over both b and s to `[i, o]`. Raises ValueError as `check_matmul`, which refuses flags
    for the latter.
    """
    check_matmul(A, B, out, transposed_A, transposed_B)
    if A.ndim == 3 and B.ndim == 3:
        return int8_linear_matmul(A.flatten(0, 1).t(), B.flatten(0, 1).t(), out)
    return int8_linear_matmul(A.mT if transposed_A else A, B if transposed_B else B.mT, out)


def batched_igemm(
    A: Tensor, B: Tensor, out: Tensor | None = None, transposed_A: bool = False, transposed_B: bool = False
) -> Tensor:
    """Exact int32 products of int8 matrices, `[b, M, K] @ [b, K, N]`, each transposed first where its flag says so.

    Raises ValueError for operands of other than three dimensions, or of different b, and for `out` of another shape,
    dtype or device.
    """
    if A.ndim != 3 or B.ndim != 3 or A.shape[0] != B.shape[0]:
        raise ValueError(f"A and B have shapes {tuple(A.shape)} and {tuple(B.shape)}, expected [b, …, …] twice")
    left, right = A.mT if transposed_A else A, B if transposed_B else B.mT
    shape = (A.shape[0], left.shape[1], right.shape[1])
    if out is None:
        out = torch.empty(shape, dtype=torch.int32, device=A.device)
    check_buffer(out, shape, torch.int32, A.device)
    for product, a, b in zip(out, left, right, strict=True):
        int8_linear_matmul(a, b, product)
    return out
