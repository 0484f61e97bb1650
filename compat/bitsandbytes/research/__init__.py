"""Products of the older research module: operands in 8-bit floats."""

from . import autograd, nn
from .autograd._functions import matmul_fp8_global, matmul_fp8_mixed

__all__ = ["autograd", "matmul_fp8_global", "matmul_fp8_mixed", "nn"]
