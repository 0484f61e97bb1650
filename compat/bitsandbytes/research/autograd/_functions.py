"""Products of operands in 8-bit floats."""

from __future__ import annotations

from torch import Tensor

from bnb_core.functional.buffers import copied_to
from bnb_core.nn.linear_fp8 import matmul_fp8, row_blocksize

__all__ = ["get_block_sizes", "matmul_fp8_global", "matmul_fp8_mixed"]


def get_block_sizes(input_matrix: Tensor, weight_matrix: Tensor) -> tuple[int, int]:
    """Block sizes for the rows of `[…, K]` and of the product with `[N, K]`."""
    return row_blocksize(input_matrix.shape[-1]), row_blocksize(weight_matrix.shape[0])


def matmul_fp8_mixed(
    A: Tensor,
    B: Tensor,
    fw_code: Tensor,
    bw_code: Tensor,
    out: Tensor | None = None,
    bsz: int = -1,
    bsz2: int = -1,
) -> Tensor:
    """`A @ B` with one scale per block of a row. B: `[K, N]`. bsz, bsz2: -1 for blocks that hold a row."""
    along_in, along_out = get_block_sizes(A, B.t())
    blocksizes = along_in if bsz == -1 else bsz, along_out if bsz2 == -1 else bsz2
    return copied_to(out, matmul_fp8(A, B.t(), fw_code, bw_code, blocksizes))


def matmul_fp8_global(
    A: Tensor,
    B: Tensor,
    fw_code: Tensor,
    bw_code: Tensor,
    out: Tensor | None = None,
    bsz: int = -1,
    bsz2: int = -1,
) -> Tensor:
    """`A @ B` with one scale per tensor. B: `[K, N]`. bsz, bsz2: taken for compatibility."""
    return copied_to(out, matmul_fp8(A, B.t(), fw_code, bw_code))
