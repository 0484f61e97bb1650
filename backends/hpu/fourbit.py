"""NF4 weights on Gaudi."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.formats import as_bytes

SOFTWARE = "habana-torch-plugin"
# From this version on the even element is in the high half of a byte, as in checkpoints; before, in the low one.
HIGH_FIRST = (1, 22)


def dequantize_4bit(
    A: Tensor,
    absmax: Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """`code * absmax` of each element; Gaudi's operator is asked for fp32, so that it is rounded to `dtype` once."""
    count = math.prod(shape)
    packed = as_bytes(A)[: ceil_div(count, 2)]
    if not high_half_first():
        packed = (packed << 4) | (packed >> 4)
    # It decodes whole bytes.
    values = torch.ops.hpu.dequantize_nf4(
        packed, absmax.contiguous(), blocksize, out_shape=(2 * packed.numel(),), out_dtype=torch.float32
    )
    result = torch.empty(tuple(shape), dtype=dtype, device=A.device) if out is None else out
    return result.copy_(values[:count].view(shape))


@cache
def high_half_first() -> bool:
    """Whether the installed software has the order of checkpoints; one without a version has the newer."""
    try:
        version = importlib.metadata.version(SOFTWARE)
    except importlib.metadata.PackageNotFoundError:
        return True
    return tuple(int(part) for part in version.split(".")[:2]) >= HIGH_FIRST
