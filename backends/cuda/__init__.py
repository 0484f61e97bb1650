"""Kernels for NVIDIA GPUs in CUDA C++, where they were built, and for these and AMD's the portable ones in Triton."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import torch

from bnb_core.ops_registry import BackendUnavailable, Kernel

from .. import triton

API_VERSION = 1

# Family → its operators.
OPS = {
    "blockwise": ("quantize_blockwise", "dequantize_blockwise"),
    "fourbit": ("quantize_4bit", "dequantize_4bit", "gemm_4bit", "grouped_gemm_4bit", "embedding_4bit"),
    "int8": (
        *("int8_vectorwise_quant", "int8_vectorwise_quant_mask", "int8_vectorwise_dequant", "int8_double_quant"),
        *("int8_mm", "int8_mm_dequant", "int8_scaled_mm", "int8_mixed_scaled_mm", "int8_linear"),
    ),
    "optimizer": (
        *("optimizer_update_32bit", "optimizer_update_8bit", "optimizer_update_8bit_blockwise"),
        *("optimizer_step_32bit", "optimizer_step_8bit", "optimizer_step_8bit_blockwise"),
    ),
    "statistics": ("percentile_clipping", "estimate_quantiles"),
}
# Those whose kernels refuse some arguments, in `why_not_<op>`.
LIMITED = {"gemm_4bit", "grouped_gemm_4bit"}


def is_available() -> bool:
    """True where torch finds a GPU and there are kernels; raises BackendUnavailable where not."""
    if not torch.cuda.is_available():
        raise BackendUnavailable("torch finds no CUDA or ROCm GPU")
    return is_built() or triton.is_available()


def is_built() -> bool:
    """Whether the native module is there, and torch is for NVIDIA GPUs."""
    return torch.version.cuda is not None and find_spec("._native", __package__) is not None


def too_new(native: ModuleType) -> str | None:
    """Why the driver does not run what a native module was built with, as a sentence; None where it does."""
    needed, found = native.cuda_version, native.driver_version()
    if found // 1000 >= needed // 1000:
        return None
    return f"needs a driver for CUDA {needed // 1000}, found one for {found // 1000}.{found % 1000 // 10}"


def rows(
    kernels: str = ".kernels", device: str = "cuda", name: str = "cuda/native", unavailable: str | None = None
) -> tuple[Kernel, ...]:
    """The native rows. `kernels` names a module with an attribute `native`, of `families.Families`."""
    return tuple(
        Kernel(
            op=op,
            device=device,
            name=name,
            fn=f"{kernels}:native.{family}.{op}",
            why_not=f"{kernels}:native.{family}.why_not_{op}" if op in LIMITED else None,
            unavailable=unavailable,
        )
        for family, ops in OPS.items()
        for op in ops
    )


def _native_rows() -> tuple[Kernel, ...]:
    if not is_built():
        return ()
    from . import _native

    return rows(unavailable=too_new(_native) if torch.cuda.is_available() else None)


KERNELS = _native_rows() + triton.rows("cuda")

if is_built():
    from .paging import paged_memory as paged_memory
