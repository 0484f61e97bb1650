"""4-bit weights, NF4 and FP4 (QLoRA, arXiv:2305.14314): block-wise quantization with 16 codes, two in a byte.

The element with the even index stands in the high half of a byte. A weight [N, K] is one run of N * K elements: blocks
go over the ends of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from bnb_core.ops_registry.codebooks import decision_table, four_bit
from bnb_core.ops_registry.formats import NESTED_BLOCKSIZE, as_bytes
from bnb_core.ops_registry.groups import group_rows
from bnb_core.ops_registry.precision import fp32_product

from .blockwise import CHUNK, block_slices, dequantize_blockwise, encode, scale_blocks


def quantize_4bit(
    A: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed codes [units of quant_storage, 1] and absmax (fp32, one per block).

    An odd element count is filled up with the code of 0, the last unit of `quant_storage` with zero bytes.
    """
    # FP4 has two zeros. Its second one serves the numbers just above 0, as in the bytes of the public package.
    table = decision_table(four_bit(quant_type, A.device), merge_equals=False)
    codes, absmax = encode(A.reshape(-1), table, blocksize, by_inverse)
    if codes.numel() % 2:
        codes = torch.cat([codes, table.nearest(torch.zeros(1, dtype=torch.float32, device=A.device))])
    packed = (codes[::2] << 4) | codes[1::2]
    packed = F.pad(packed, (0, -packed.numel() % quant_storage.itemsize))
    return packed.view(quant_storage).view(-1, 1), absmax


def dequantize_4bit(
    A: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`code * absmax` of each element in fp32, rounded once to `dtype`; a tensor of `shape`."""
    values = torch.empty(math.prod(shape), dtype=dtype, device=A.device)
    decode_into(values, as_bytes(A), absmax.reshape(-1), blocksize, byte_values(quant_type, A.device))
    values = values.view(shape)
    return values if out is None else out.copy_(values)


def gemm_4bit(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """A [..., K] times the transpose of the 4-bit weight [N, K], plus bias [N]: [..., N] in A's dtype.

    The weight is not rounded to A's dtype: products, sums and bias are fp32, the result is rounded once.
    """
    rows, columns = shapeB
    scales = block_scales(absmax, absmax_8bit, absmax_code, absmax_offset)
    x = A.reshape(math.prod(A.shape[:-1]), columns).float()
    result = torch.empty(x.shape[0], rows, dtype=A.dtype, device=A.device)
    for start, weight in weight_rows(B, rows, columns, scales, blocksize, quant_type):
        product = fp32_product(x, weight)
        if bias is not None:
            product += bias[start : start + weight.shape[0]]
        result[:, start : start + weight.shape[0]] = product
    result = result.view(*A.shape[:-1], rows)
    return result if out is None else out.copy_(result)


def grouped_gemm_4bit(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    ends: torch.Tensor,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
    input_gradient: bool = False,
) -> torch.Tensor:
    """`gemm_4bit` of the rows up to ends[0] with the first of the weights [E, N, K], and so on; zeros after the last.

    Or, for gradients A [T, N], their products with the weights themselves, [T, K].
    """
    _, N, K = shapeB
    packed = as_bytes(B)
    scales = block_scales(absmax, absmax_8bit, absmax_code, absmax_offset)
    result = torch.zeros(A.shape[0], K if input_gradient else N, dtype=A.dtype, device=A.device)
    for group, rows in group_rows(ends, A.shape[0]):
        part = packed[group * N * K // 2 :], scales[group * N * K // blocksize :]
        if input_gradient:
            weight = dequantize_4bit(*part, blocksize, quant_type, (N, K), torch.float32)
            result[rows] = fp32_product(A[rows].float(), weight.t())
        else:
            own_bias = None if bias is None else bias[group]
            result[rows] = gemm_4bit(A[rows], part[0], (N, K), part[1], blocksize, quant_type, own_bias)
    return result


def embedding_4bit(
    indices: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    dtype: torch.dtype,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows `indices` of the 4-bit weight [N, K]: [*indices.shape, K] in `dtype`. IndexError for one outside [0, N)."""
    rows, columns = shapeB
    device = B.device
    packed, code = as_bytes(B), four_bit(quant_type, device)
    first = (torch.arange(rows, device=device) * columns).index_select(0, indices.reshape(-1))
    result = torch.empty(first.numel(), columns, dtype=dtype, device=device)
    step = max(1, CHUNK // max(1, columns))
    for start in range(0, first.numel(), step):
        element = (first[start : start + step, None] + torch.arange(columns, device=device)).view(-1)
        byte = packed.index_select(0, element // 2)
        nibble = torch.where(element % 2 == 0, byte >> 4, byte & 15)
        block = element // blocksize
        if absmax_8bit is None:
            scale = absmax.reshape(-1).index_select(0, block)
        else:
            outer = absmax.reshape(-1).index_select(0, block // NESTED_BLOCKSIZE)
            scale = block_scales(outer, absmax_8bit.reshape(-1).index_select(0, block), absmax_code, absmax_offset, 1)
        value = code.index_select(0, nibble.to(torch.int32)) * scale
        chunk = result[start : start + step]
        chunk.copy_(value.view(chunk.shape))  # not view(-1, columns): there may be no columns
    return result.view(*indices.shape, columns)


def by_inverse(x: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
    """`x * (1 / absmax)`, each step rounded to fp32, which decides ties as the bytes of the public package do.

    Where the inverse is no normal number (absmax below 2**-126 or above 2**126) it is `x / absmax`.
    """
    has_inverse = (absmax >= 2.0**-126) & (absmax <= 2.0**126)
    return torch.where(has_inverse, x * (1 / absmax), x / absmax)


def byte_values(quant_type: str, device: torch.device) -> torch.Tensor:
    """The two values that each byte stands for, [256, 2]: looking up bytes is quicker than splitting them."""
    code = four_bit(quant_type, device)
    return torch.cartesian_prod(code, code)


def decode_into(
    values: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor, blocksize: int, table: torch.Tensor
) -> None:
    """Fills the flat tensor `values` from the first bytes of `packed` and the first scales of `absmax`."""
    for elements, blocks in block_slices(values.numel(), blocksize):
        byte = packed[elements.start // 2 : -(-elements.stop // 2)].to(torch.int32)
        pairs = table.index_select(0, byte).view(-1)[: elements.stop - elements.start]
        values[elements] = scale_blocks(pairs, absmax[blocks], blocksize)


def weight_rows(
    packed: torch.Tensor, rows: int, columns: int, absmax: torch.Tensor, blocksize: int, quant_type: str
) -> Iterator[tuple[int, torch.Tensor]]:
    """The weight in fp32, in runs of rows that begin with a block: (first row, [rows of the run, columns])."""
    data, table = as_bytes(packed), byte_values(quant_type, packed.device)
    aligned = blocksize // math.gcd(columns, blocksize)  # this many rows are whole blocks, and whole bytes
    step = aligned * max(1, CHUNK // max(1, aligned * columns))
    for start in range(0, rows, step):
        weight = torch.empty(min(step, rows - start), columns, dtype=torch.float32, device=packed.device)
        first = start * columns
        decode_into(weight.view(-1), data[first // 2 :], absmax[first // blocksize :], blocksize, table)
        yield start, weight


def block_scales(
    absmax: torch.Tensor,
    absmax_8bit: torch.Tensor | None,
    absmax_code: torch.Tensor | None,
    absmax_offset: torch.Tensor | None,
    blocksize: int = NESTED_BLOCKSIZE,
) -> torch.Tensor:
    """One fp32 scale per block, flat. Nested ones are block-wise 8-bit codes of the scales less `absmax_offset`."""
    if absmax_8bit is None or absmax_code is None or absmax_offset is None:
        return absmax.reshape(-1)
    codes = absmax_8bit.reshape(-1)
    return dequantize_blockwise(codes, absmax, absmax_code, blocksize, torch.float32) + absmax_offset.reshape(())
