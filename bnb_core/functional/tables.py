"""The tables that codes stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from bnb_core.ops_registry import codebooks

__all__ = ["create_dynamic_map", "create_fp8_map", "create_linear_map", "create_normal_map", "get_4bit_type"]


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


def get_4bit_type(typename: str, device: torch.device | str | None = None, blocksize: int = 64) -> Tensor:
    """The 16 values of `nf4`, `fp4` or `af4` (the last made for blocks of 64), fp32, entry i for code i.

    Raises NotImplementedError for another type, or `af4` with another block size.
    """
    if typename not in codebooks.FOUR_BIT or (typename == "af4" and blocksize != 64):
        raise NotImplementedError(f"there is no 4-bit type {typename!r} for blocks of {blocksize}")
    return codebooks.four_bit(typename, "cpu" if device is None else device).clone()
