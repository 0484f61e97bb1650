"""4-bit weights, NF4 and FP4, on NVIDIA GPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.memory import NAMES, address, aligned, contiguous, filled, new_tensor, writable

from .streams import place

# More rows of A are multiplied faster with the whole weight decoded. Guesses, until `python -m benchmarks.rows` has
# measured them: tensor cores take 64 rows at a time, which an estimate for 4096 x 4096 on an H200 gives 6 µs, and to
# decode the whole weight, write it and read it again 20.
MOST_ROWS = 8
MOST_ROWS_OF_TENSOR_CORES = {120: 64, 90: 128, 86: 64, 80: 128}  # by compute capability, for that and later ones
# What tensor cores multiply by: whole runs of so many codes in blocks and in rows of a weight.
UNIT = 64
MOST_GROUPS, MOST_K = 1024, 2**24


@cache
def _most_rows_of_tensor_cores(device: torch.device) -> int:
    if not torch.cuda.is_available():  # a fake tensor, without a GPU
        return MOST_ROWS
    major, minor = torch.cuda.get_device_capability(device)
    return next((most for arch, most in MOST_ROWS_OF_TENSOR_CORES.items() if arch <= 10 * major + minor), MOST_ROWS)


class FourBit:
    """The kernels of a native module."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def quantize_4bit(
        self, A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Codes of `A * (1 / absmax)`, two to a byte, and the absmax of each block."""
        A, n = A.contiguous(), A.numel()
        units = ceil_div(ceil_div(n, 2), quant_storage.itemsize)
        packed = A.new_empty(units, 1, dtype=quant_storage)
        absmax = A.new_empty(ceil_div(n, blocksize), dtype=torch.float32)
        self._native.quantize_4bit(
            *place(A),
            *(A.data_ptr(), NAMES[A.dtype], n, blocksize, quant_type),
            *(packed.data_ptr(), units * quant_storage.itemsize, absmax.data_ptr()),
        )
        return packed, absmax

    def dequantize_4bit(
        self,
        A: Tensor,
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        out: Tensor | None = None,
    ) -> Tensor:
        """The value of each code times the absmax of its block: one fp32 product, rounded once to `dtype`."""
        result = new_tensor(A, *shape, dtype=dtype) if out is None else writable(out, A, absmax)
        A, absmax = A.contiguous(), absmax.contiguous()
        self._native.dequantize_4bit(
            *place(A),
            *(A.data_ptr(), absmax.data_ptr(), blocksize, quant_type),
            *(math.prod(shape), NAMES[dtype], result.data_ptr()),
        )
        return result if out is None else filled(out, result)

    @staticmethod
    def why_not_gemm_4bit(
        A: Tensor, B: Tensor, shapeB: Sequence[int], absmax: Tensor, blocksize: int, *rest: object
    ) -> str | None:
        """Many rows are left to the composed kernel, which decodes the whole weight."""
        if A.device.type != "cuda":  # tests are there for all rows
            return None
        by_tensor_cores = A.dtype != torch.float32 and shapeB[1] % UNIT == 0 and blocksize >= UNIT
        M, most = math.prod(A.shape[:-1]), _most_rows_of_tensor_cores(A.device) if by_tensor_cores else MOST_ROWS
        return None if M <= most else f"needs at most {most} rows, got A with {M}"

    def gemm_4bit(
        self,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        bias: Tensor | None = None,
        absmax_8bit: Tensor | None = None,
        absmax_code: Tensor | None = None,
        absmax_offset: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """A [..., K] times the transpose of the weight [N, K], plus bias; summed in fp32, rounded once to A's dtype.

        Tensor cores get the values of codes rounded to A's dtype; scales stay fp32.
        """
        N, K = shapeB
        rows = A.shape[:-1]
        if out is None:
            result = A.new_empty(*rows, N)
        else:
            result = writable(out, A, B, absmax, bias, absmax_8bit, absmax_code, absmax_offset)
        A, B, absmax = A.contiguous(), B.contiguous(), absmax.contiguous()
        bias, absmax_8bit, absmax_code = contiguous(bias), contiguous(absmax_8bit), contiguous(absmax_code)
        self._native.gemm_4bit(
            *place(A),
            *(A.data_ptr(), NAMES[A.dtype], math.prod(rows), B.data_ptr(), N, K, absmax.data_ptr()),
            *(address(absmax_8bit), address(absmax_code), 0 if absmax_code is None else absmax_code.numel()),
            *(address(absmax_offset), blocksize, quant_type),
            *(address(bias), "float32" if bias is None else NAMES[bias.dtype], result.data_ptr()),
        )
        return result if out is None else filled(out, result)

    @staticmethod
    def why_not_grouped_gemm_4bit(
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        ends: Tensor,
        bias: Tensor | None = None,
        absmax_8bit: Tensor | None = None,
        absmax_code: Tensor | None = None,
        absmax_offset: Tensor | None = None,
        input_gradient: bool = False,
    ) -> str | None:
        """What tensor cores take here, and so few rows that the weights are better decoded for each tile."""
        E, N, K = shapeB
        if input_gradient:
            return "computes no input_gradient"
        if A.dtype == torch.float32:
            return "needs A in float16 or bfloat16, got float32"
        if K % UNIT or K > MOST_K or blocksize < UNIT:
            wanted = f"rows of up to {MOST_K} elements and blocks that are multiples of {UNIT}"
            return f"needs {wanted}, got shapeB {tuple(shapeB)} and blocksize {blocksize}"
        if E > MOST_GROUPS or E * N * K >= 2**31 * UNIT:
            return f"needs at most {MOST_GROUPS} groups and {2**31 * UNIT} weights, got shapeB {tuple(shapeB)}"
        if A.device.type != "cuda":
            return None
        most = _most_rows_of_tensor_cores(A.device)
        if most == MOST_ROWS:
            return "needs a GPU of compute capability 8.0 or later"
        return None if A.shape[0] <= most * E else f"needs at most {most} rows to a group, got A with {A.shape[0]} rows"

    def grouped_gemm_4bit(
        self,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        ends: Tensor,
        bias: Tensor | None = None,
        absmax_8bit: Tensor | None = None,
        absmax_code: Tensor | None = None,
        absmax_offset: Tensor | None = None,
        input_gradient: bool = False,
    ) -> Tensor:
        """`gemm_4bit` of each group, zeros after the last. What is wrong in `ends` leads to no row outside of A."""
        E, N, K = shapeB
        result = A.new_zeros(A.shape[0], N)
        A, B, absmax, ends = aligned(A.contiguous()), aligned(B.contiguous()), absmax.contiguous(), ends.contiguous()
        bias, absmax_8bit, absmax_code = contiguous(bias), contiguous(absmax_8bit), contiguous(absmax_code)
        self._native.grouped_gemm_4bit(
            *place(A),
            *(A.data_ptr(), NAMES[A.dtype], A.shape[0], B.data_ptr(), N, K, absmax.data_ptr()),
            *(address(absmax_8bit), address(absmax_code), 0 if absmax_code is None else absmax_code.numel()),
            *(address(absmax_offset), blocksize, quant_type),
            *(ends.data_ptr(), ends.dtype == torch.int64, E),
            *(address(bias), "float32" if bias is None else NAMES[bias.dtype], result.data_ptr()),
        )
        return result

    def embedding_4bit(
        self,
        indices: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        dtype: torch.dtype,
        absmax_8bit: Tensor | None = None,
        absmax_code: Tensor | None = None,
        absmax_offset: Tensor | None = None,
    ) -> Tensor:
        """Rows `indices` of the weight, decoded. An index outside gives NaN."""
        N, K = shapeB
        indices, B, absmax = indices.contiguous(), B.contiguous(), absmax.contiguous()
        absmax_8bit, absmax_code = contiguous(absmax_8bit), contiguous(absmax_code)
        out = B.new_empty((*indices.shape, K), dtype=dtype)
        self._native.embedding_4bit(
            *place(B),
            *(indices.data_ptr(), indices.dtype == torch.int64, indices.numel()),
            *(B.data_ptr(), N, K, absmax.data_ptr(), blocksize, quant_type, NAMES[dtype]),
            *(address(absmax_8bit), address(absmax_code), 0 if absmax_code is None else absmax_code.numel()),
            *(address(absmax_offset), out.data_ptr()),
        )
        return out
