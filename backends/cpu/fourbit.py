"""4-bit weights, NF4 and FP4, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.formats import NESTED_BLOCKSIZE, as_bytes
from bnb_core.ops_registry.groups import group_rows
from bnb_core.ops_registry.memory import NAMES, address, contiguous, filled, new_tensor, writable
from bnb_core.ops_registry.precision import full_fp32

from .blockwise import Blockwise
from .levels import at_each_level


class FourBit:
    """The kernels of one level."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native
        self._dequantize_blockwise = Blockwise(native).dequantize_blockwise

    def quantize_4bit(
        self, A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Codes of `A * (1 / absmax)`, two to a byte, and the absmax of each block."""
        A, n = A.contiguous(), A.numel()
        units = ceil_div(ceil_div(n, 2), quant_storage.itemsize)
        packed = A.new_empty(units, 1, dtype=quant_storage)
        absmax = A.new_empty(ceil_div(n, blocksize), dtype=torch.float32)
        self._native.quantize_4bit(
            A.data_ptr(),
            NAMES[A.dtype],
            n,
            blocksize,
            quant_type,
            packed.data_ptr(),
            units * quant_storage.itemsize,
            absmax.data_ptr(),
            torch.get_num_threads(),
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
            A.data_ptr(),
            absmax.data_ptr(),
            blocksize,
            quant_type,
            math.prod(shape),
            NAMES[dtype],
            result.data_ptr(),
            torch.get_num_threads(),
        )
        return result if out is None else filled(out, result)

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
        """A [..., K] times the transpose of the weight [N, K], plus bias; summed in fp32, rounded once to A's dtype."""
        N, K = shapeB
        rows = A.shape[:-1]
        if out is None:
            result = A.new_empty(*rows, N)
        else:
            result = writable(out, A, B, absmax, bias, absmax_8bit, absmax_code, absmax_offset)
        A, B, absmax = A.contiguous(), B.contiguous(), absmax.contiguous()
        bias, absmax_8bit, absmax_code = contiguous(bias), contiguous(absmax_8bit), contiguous(absmax_code)
        self._native.gemm_4bit(
            A.data_ptr(),
            NAMES[A.dtype],
            math.prod(rows),
            B.data_ptr(),
            N,
            K,
            absmax.data_ptr(),
            address(absmax_8bit),
            address(absmax_code),
            0 if absmax_code is None else absmax_code.numel(),
            address(absmax_offset),
            blocksize,
            quant_type,
            address(bias),
            "float32" if bias is None else NAMES[bias.dtype],
            result.data_ptr(),
            torch.get_num_threads(),
        )
        return result if out is None else filled(out, result)

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
        """`gemm_4bit` of each group with rows, or the product of a gradient with its decoded weight."""
        _, N, K = shapeB
        size, blocks = N * K // 2, N * K // blocksize
        A, absmax, absmax_8bit = A.contiguous(), absmax.contiguous().view(-1), contiguous(absmax_8bit)
        packed = as_bytes(B)
        result = A.new_zeros(A.shape[0], K if input_gradient else N)
        for group, rows in group_rows(ends, A.shape[0]):
            weight, first, last = packed[group * size : (group + 1) * size], group * blocks, (group + 1) * blocks
            if absmax_8bit is None or absmax_code is None or absmax_offset is None:
                scales = absmax[first:last]
            else:
                # Groups of scales may begin in the weight before.
                outer = first // NESTED_BLOCKSIZE
                codes = absmax_8bit.view(-1)[outer * NESTED_BLOCKSIZE : last]
                nested = (codes, absmax[outer:], absmax_code, NESTED_BLOCKSIZE, torch.float32)
                scales = self._dequantize_blockwise(*nested)[-blocks:] + absmax_offset.view(())
            if input_gradient:
                values = self.dequantize_4bit(weight, scales, blocksize, quant_type, (N, K), A.dtype)
                # A product that is told where to write is left alone by autocast.
                with full_fp32():
                    torch.mm(A[rows].detach(), values, out=result[rows])
            else:
                own_bias = None if bias is None else bias[group]
                part = (weight, (N, K), scales, blocksize, quant_type, own_bias)
                self.gemm_4bit(A[rows], *part, out=result[rows])
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
        """Rows `indices` of the weight, decoded. IndexError for an index outside, before anything is written."""
        rows, columns = shapeB
        indices, B, absmax = indices.contiguous(), B.contiguous(), absmax.contiguous()
        out = B.new_empty((*indices.shape, columns), dtype=dtype)
        code_size = 0
        if absmax_8bit is not None and absmax_code is not None:
            absmax_8bit, absmax_code = absmax_8bit.contiguous(), absmax_code.contiguous()
            code_size = absmax_code.numel()
        outside = self._native.embedding_4bit(
            indices.data_ptr(),
            indices.dtype == torch.int64,
            indices.numel(),
            B.data_ptr(),
            rows,
            columns,
            absmax.data_ptr(),
            blocksize,
            quant_type,
            NAMES[dtype],
            address(absmax_8bit),
            address(absmax_code),
            code_size,
            address(absmax_offset),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        if outside >= 0:
            raise IndexError(
                f"bnb_core::embedding_4bit: index {int(indices.view(-1)[outside])} at position {outside} of indices, "
                f"expected 0 to {rows - 1} for shapeB {tuple(shapeB)}"
            )
        return out


kernels = at_each_level(FourBit)
