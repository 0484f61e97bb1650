"""The product of int8 matrices on Intel GPUs, by torch's own operation.

What torch's source says of `_int_mm` on XPU: there from 2.9 on; both factors have two dimensions, of any size and
strides; the product is oneDNN's, which is given scales of one. With scales oneDNN finishes a sum in fp32, where those
beyond 2^24 are rounded. torch's own tests of it end at K = 32; whether larger sums are rounded on a card, and which
sizes are faster than a kernel in Triton, is not known here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnb_core.ops_registry.checks import row_count
from bnb_core.ops_registry.formats import EXACT_K


def int8_mm(A: Tensor, B: Tensor, out: Tensor | None = None) -> Tensor:
    """A [..., K] times the transpose of B [N, K], exact in int32: the sum of products over at most `EXACT_K`."""
    rows, weight = A.reshape(row_count(A), A.shape[-1]), B.t()
    result = torch.empty(*A.shape[:-1], B.shape[0], dtype=torch.int32, device=A.device)
    total = result.view(rows.shape[0], B.shape[0])
    torch._int_mm(rows[:, :EXACT_K], weight[:EXACT_K], out=total)
    for start in range(EXACT_K, B.shape[1], EXACT_K):
        part = slice(start, start + EXACT_K)
        total += torch._int_mm(rows[:, part], weight[part])
    return result if out is None else out.copy_(result)


def why_not_int8_mm(A: Tensor, B: Tensor) -> str | None:
    """Beyond it each part is another pass over the result; a kernel in Triton goes before that."""
    K = B.shape[1]
    return None if K <= EXACT_K else f"needs K of at most {EXACT_K} to be exact in one product, got {K}"
