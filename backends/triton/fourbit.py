"""4-bit weights, NF4 and FP4 (QLoRA, arXiv:2305.14314): the even element in the high half of a byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.codebooks import decision_table, four_bit
from bnb_core.ops_registry.formats import NESTED_BLOCKSIZE, as_bytes

from .blockwise import block_absmax, dequantize_blockwise, nearest
from .launch import INTERPRETED, next_power, on_device, positions, rounded, share
from .tiles import tile

NESTED = tl.constexpr(NESTED_BLOCKSIZE)


def quantize_4bit(A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype) -> tuple[Tensor, Tensor]:
    """Packed codes [units of quant_storage, 1] and absmax (fp32, one per block)."""
    n = A.numel()
    units = ceil_div(ceil_div(n, 2), quant_storage.itemsize)
    packed = torch.zeros(units, 1, dtype=quant_storage, device=A.device)
    absmax = torch.empty(ceil_div(n, blocksize), dtype=torch.float32, device=A.device)
    # FP4 has two zeros. Its second one serves the numbers just above 0, as in the bytes of the public package.
    boundaries, order = decision_table(four_bit(quant_type, A.device), merge_equals=False)
    if n:
        launch = tile("fourbit.quantize", A.device)
        rows = max(1, launch.pop("SIZE") // blocksize)
        with on_device(A):
            _quantize[(triton.cdiv(absmax.numel(), rows),)](
                *(A.contiguous(), boundaries, order, packed.view(torch.uint8), absmax, n, ceil_div(n, 2)),
                ROWS=rows,
                BLOCK=blocksize,
                **launch,
            )
    return packed, absmax


def dequantize_4bit(
    A: Tensor,
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """`code * absmax` of each element in fp32, rounded once to `dtype`; a tensor of `shape`."""
    result = torch.empty(tuple(shape), dtype=dtype, device=A.device)
    if n := result.numel():
        code = four_bit(quant_type, A.device)
        launch = tile("fourbit.dequantize", A.device)
        with on_device(A):
            _dequantize[(triton.cdiv(n, 2 * launch["SIZE"]),)](
                as_bytes(A), absmax.contiguous(), code, result, n, ceil_div(n, 2), BLOCK=blocksize, **launch
            )
    return result if out is None else out.copy_(result)


def why_not_gemm_4bit(A: Tensor, *rest: object) -> str | None:
    """Many rows are multiplied faster with the whole weight decoded, which is what the composed kernel does."""
    M = math.prod(A.shape[:-1])
    return None if tile("fourbit.gemm", A.device, M) else f"needs fewer rows than A has, {M}"


def gemm_4bit(
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
    """A [..., K] times the transpose of the weight [N, K], plus bias [N], summed in fp32 and rounded once.

    Tensor cores get weights of 16 bits rounded to A's dtype; one row, and fp32, are multiplied in fp32.
    """
    N, K = shapeB
    M = math.prod(A.shape[:-1])
    launch = tile("fourbit.gemm", A.device, M)
    result = torch.empty(*A.shape[:-1], N, dtype=A.dtype, device=A.device)
    if result.numel():
        grid = triton.cdiv(M, launch["ROWS"]), triton.cdiv(N, launch["COLUMNS"])
        args = (
            A.contiguous(),
            as_bytes(B),
            _scales(absmax, absmax_8bit, absmax_code, absmax_offset),
            four_bit(quant_type, A.device),
            result if bias is None else bias.contiguous(),
        )
        aligned = _aligned(K, blocksize, launch["DEPTH"])
        with on_device(A):
            _gemm[grid](*args, result, M, N, K, BIAS=bias is not None, BLOCK=blocksize, ALIGNED=aligned, **launch)
    return result if out is None else out.copy_(result)


def grouped_gemm_4bit(
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
    """`gemm_4bit` of the rows up to ends[0] with the first of the weights [E, N, K], and so on; zeros after the last.

    Or, for gradients A [T, N], their products with the weights themselves, [T, K]. `ends` is read on the device: what
    is wrong in it is not found out, but leads to no row outside of A.
    """
    E, N, K = shapeB
    T = A.shape[0]
    depth, width = (N, K) if input_gradient else (K, N)
    result = torch.zeros(T, width, dtype=A.dtype, device=A.device)
    if result.numel() and E:
        launch = tile("fourbit.grouped_gemm", A.device, ceil_div(T, E))
        # So many tiles are enough, however the rows are divided.
        grid = min(T, T // launch["ROWS"] + E), triton.cdiv(width, launch["COLUMNS"])
        args = (
            A.contiguous(),
            as_bytes(B),
            _scales(absmax, absmax_8bit, absmax_code, absmax_offset),
            four_bit(quant_type, A.device),
            result if bias is None else bias.contiguous(),
            ends.contiguous(),
            result,
        )
        with on_device(A):
            _grouped_gemm[grid](
                *(*args, E, T, width, depth),
                BIAS=bias is not None,
                GROUPS=next_power(E),
                BLOCK=blocksize,
                ALIGNED=_aligned(K, blocksize, launch["COLUMNS" if input_gradient else "DEPTH"]),
                TRANSPOSED=input_gradient,
                **launch,
            )
    return result


def embedding_4bit(
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
    """Rows `indices` of the 4-bit weight [N, K]: [*indices.shape, K] in `dtype`. An index outside [0, N) gives NaN."""
    N, K = shapeB
    result = torch.empty(*indices.shape, K, dtype=dtype, device=B.device)
    if n := result.numel():
        args = indices.contiguous(), as_bytes(B), absmax.contiguous(), four_bit(quant_type, B.device)
        nested, entries = (absmax, absmax, absmax), 0
        if absmax_8bit is not None and absmax_code is not None and absmax_offset is not None:
            nested = absmax_8bit.contiguous(), absmax_code.contiguous(), absmax_offset
            entries = absmax_code.numel()
        launch = tile("fourbit.embed", B.device)
        with on_device(B):
            # Products and sums fused would be other scales.
            _embed[(triton.cdiv(n, launch["SIZE"]),)](
                *(*args, *nested, result, n, N, K, entries),
                IS_NESTED=entries > 0,
                BLOCK=blocksize,
                enable_fp_fusion=False,
                **launch,
            )
    return result


def _scales(
    absmax: Tensor, absmax_8bit: Tensor | None, absmax_code: Tensor | None, absmax_offset: Tensor | None
) -> Tensor:
    """One fp32 scale per block."""
    if absmax_8bit is None or absmax_code is None or absmax_offset is None:
        return absmax.contiguous()
    scales = dequantize_blockwise(absmax_8bit, absmax, absmax_code, NESTED_BLOCKSIZE, torch.float32)
    return scales + absmax_offset.reshape(())


def _aligned(length: int, blocksize: int, inner: int) -> bool:
    """Whether rows of a weight are whole blocks, and a tile as wide as `inner` whole blocks or a part of one."""
    return length % blocksize == 0 and (inner % blocksize == 0 or blocksize % inner == 0)


@triton.jit
def _quantize(A, boundaries, order, packed, absmax, n, n_bytes, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    first, count = share(n, ROWS * BLOCK)
    first_byte, byte_count = share(n_bytes, ROWS * (BLOCK // 2))
    row = tl.arange(0, ROWS)
    element = row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    exist = element < count
    x = tl.load(A + first + element, mask=exist, other=0.0).to(tl.float32)
    scale, scales = block_absmax(x, exist)
    divisor = tl.where(scales, scale, 1.0)
    # Ties are decided by the product with the inverse, where that is a normal number.
    has_inverse = (divisor >= 2.0**-126) & (divisor <= 2.0**126)
    product = x * tl.div_rn(tl.full(divisor.shape, 1.0, tl.float32), divisor)[:, None]
    t = tl.where(has_inverse[:, None], product, tl.div_rn(x, divisor[:, None]))
    t = tl.where(scales[:, None], t, 0.0)
    codes = nearest(t, boundaries, order, 16, 4)
    high, low = tl.split(codes.reshape(ROWS, BLOCK // 2, 2))
    byte = row[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    tl.store(packed + first_byte + byte, (high << 4) | low, mask=byte < byte_count)
    tl.store(absmax + first // BLOCK + row, scale, mask=row * BLOCK < count)


@triton.jit
def _dequantize(packed, absmax, code, result, n, n_bytes, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    first, count = share(n, 2 * SIZE)
    first_byte, byte_count = share(n_bytes, SIZE)
    byte = tl.arange(0, SIZE)
    exist = byte < byte_count
    pair = tl.load(packed + first_byte + byte, mask=exist, other=0)
    # Both elements of a byte are in one block: block sizes are even.
    scale = tl.load(absmax + (first + byte * 2) // BLOCK, mask=exist, other=0.0)
    values = _values(pair, scale, code).reshape(2 * SIZE)
    element = tl.arange(0, 2 * SIZE)
    tl.store(result + first + element, rounded(values, result.dtype.element_ty), mask=element < count)


@triton.jit
def _values(pair, scale, code):
    """Both values of each byte, side by side."""
    pair = pair.to(tl.int32)
    return tl.join(tl.load(code + (pair >> 4)) * scale, tl.load(code + (pair & 15)) * scale)


@triton.jit
def _weights(
    packed, absmax, code, first, outer, outers, start, length,
    OUTER: tl.constexpr, INNER: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """A tile [OUTER, INNER] of a weight with rows of `length` from element `first` on; zeros outside of it."""
    origin = first + outer.to(tl.int64) * length + start
    if ALIGNED:
        UNIT: tl.constexpr = INNER if INNER < BLOCK else BLOCK
        unit = tl.arange(0, INNER // UNIT)[None, :] * UNIT
        within = (outer < outers)[:, None] & (start + unit < length)
        scale = tl.load(absmax + (origin[:, None] + unit) // BLOCK, mask=within, other=0.0)
        byte = unit[:, :, None] // 2 + tl.arange(0, UNIT // 2)[None, None, :]
        pair = tl.load(packed + (origin // 2)[:, None, None] + byte, mask=within[:, :, None], other=0)
        return _values(pair, scale[:, :, None], code).reshape(OUTER, INNER)
    else:
        inner = tl.arange(0, INNER)[None, :]
        element = origin[:, None] + inner
        exist = (outer < outers)[:, None] & (start + inner < length)
        byte = tl.load(packed + element // 2, mask=exist, other=0).to(tl.int32)
        nibble = tl.where(element % 2 == 0, byte >> 4, byte & 15)
        return tl.load(code + nibble) * tl.load(absmax + element // BLOCK, mask=exist, other=0.0)


@triton.jit
def _product(
    A, packed, absmax, code, row, rows, column, column0, columns, depth, first,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Rows of A [rows, depth] times columns, from `column0` on, of a weight that begins with element `first`.

    A column is a row of the weight in memory, or TRANSPOSED a column there.
    """
    if ROWS == 1:  # sums across threads are taken once
        sums = tl.zeros((COLUMNS, DEPTH), tl.float32)
    else:
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, depth, DEPTH):
        k = start + tl.arange(0, DEPTH)
        exist = (row < rows)[:, None] & (k < depth)[None, :]
        x = tl.load(A + (row * depth)[:, None] + k[None, :], mask=exist, other=0.0)
        if TRANSPOSED:
            weight = _weights(packed, absmax, code, first, k, depth, column0, columns, DEPTH, COLUMNS, BLOCK, ALIGNED)
        else:
            weight = _weights(
                packed, absmax, code, first, column, columns, start, depth, COLUMNS, DEPTH, BLOCK, ALIGNED
            )
        if ROWS == 1:
            sums += x.to(tl.float32) * weight
        else:
            weight = rounded(weight, A.dtype.element_ty)
            if INTERPRETED:  # its product takes bf16 for integers
                x, weight = x.to(tl.float32), weight.to(tl.float32)
            if not TRANSPOSED:
                weight = tl.trans(weight)
            total = tl.dot(x, weight, total, input_precision="ieee")
    if ROWS == 1:
        total = tl.sum(sums, 1)[None, :]
    return total


@triton.jit
def _gemm(
    A, packed, absmax, code, bias, result, M, N, K,
    BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column0 = tl.program_id(1) * COLUMNS
    column = column0 + tl.arange(0, COLUMNS)
    total = _product(
        A, packed, absmax, code, row, M, column, column0, N, K, 0, ROWS, COLUMNS, DEPTH, BLOCK, ALIGNED, False
    )
    if BIAS:
        total += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    place = row[:, None] * N + column[None, :]
    tl.store(result + place, rounded(total, result.dtype.element_ty), mask=(row < M)[:, None] & (column < N)[None, :])


@triton.jit
def _grouped_gemm(
    A, packed, absmax, code, bias, ends, result, groups, T, width, depth,
    BIAS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    # Each group has tiles of its own, which are numbered through.
    group = tl.arange(0, GROUPS)
    end = tl.minimum(tl.load(ends + group, mask=group < groups, other=0).to(tl.int64), T)
    begin = tl.load(ends + group - 1, mask=(group > 0) & (group < groups), other=0).to(tl.int64)
    begin = tl.maximum(begin, 0)
    tiles = tl.where((group < groups) & (end > begin), (end - begin + ROWS - 1) // ROWS, 0)
    last = tl.cumsum(tiles, 0)
    number = tl.program_id(0)
    mine = (number < last) & (number >= last - tiles)  # of one group at most
    first = tl.sum(tl.where(mine, begin + (number - last + tiles) * ROWS, 0), 0)
    rows = tl.sum(tl.where(mine, end, 0), 0)
    index = tl.sum(tl.where(mine, group, 0), 0).to(tl.int64)
    if first < rows:
        row = first + tl.arange(0, ROWS)
        column0 = tl.program_id(1) * COLUMNS
        column = column0 + tl.arange(0, COLUMNS)
        total = _product(
            A, packed, absmax, code, row, rows, column, column0, width, depth, index * width * depth,
            ROWS, COLUMNS, DEPTH, BLOCK, ALIGNED, TRANSPOSED,
        )  # fmt: skip
        if BIAS:
            total += tl.load(bias + index * width + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        place = row[:, None] * width + column[None, :]
        exist = (row < rows)[:, None] & (column < width)[None, :]
        tl.store(result + place, rounded(total, result.dtype.element_ty), mask=exist)


@triton.jit
def _embed(
    indices, packed, absmax, code, absmax_8bit, absmax_code, absmax_offset, result, n, N, K, entries,
    IS_NESTED: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    place = positions(SIZE)
    index = tl.load(indices + place // K, mask=place < n, other=0).to(tl.int64)
    exist = (place < n) & (index >= 0) & (index < N)
    element = index * K + place % K
    byte = tl.load(packed + element // 2, mask=exist, other=0).to(tl.int32)
    nibble = tl.where(element % 2 == 0, byte >> 4, byte & 15)
    block = element // BLOCK
    if IS_NESTED:
        number = tl.load(absmax_8bit + block, mask=exist, other=0).to(tl.int32)
        scale = tl.load(absmax_code + number, mask=exist & (number < entries), other=float("nan"))
        scale = scale * tl.load(absmax + block // NESTED, mask=exist, other=float("nan")) + tl.load(absmax_offset)
    else:
        scale = tl.load(absmax + block, mask=exist, other=float("nan"))
    value = tl.load(code + nibble) * scale
    tl.store(result + place, rounded(value, result.dtype.element_ty), mask=place < n)
