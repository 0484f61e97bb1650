"""Kernels for Intel GPUs: torch's own int8 product where it is exact, the portable ones in Triton."""

from dataclasses import replace

import torch

from bnb_core.ops_registry import BackendUnavailable, Kernel

from .. import triton

API_VERSION = 1


def is_available() -> bool:
    """True where torch finds an XPU; raises BackendUnavailable where not."""
    if not torch.xpu.is_available():
        raise BackendUnavailable("torch finds no XPU")
    return True


def _without_triton() -> str | None:
    try:
        triton.is_available()
    except BackendUnavailable as error:
        return str(error)
    return None


def _without_product() -> str | None:
    found = torch._C._dispatch_has_kernel_for_dispatch_key("aten::_int_mm", "XPU")
    return None if found else "this torch has no int8 product for XPUs: torch 2.9 and newer built for them do"


def _of_torch(name: str, *, limited: bool) -> Kernel:
    return Kernel(
        op="int8_mm",
        device="xpu",
        name=name,
        fn=".int8:int8_mm",
        why_not=".int8:why_not_int8_mm" if limited else None,
        unavailable=_without_product(),
    )


KERNELS = (
    _of_torch("xpu/torch", limited=True),
    *(replace(row, unavailable=_without_triton()) for row in triton.rows("xpu")),
    _of_torch("xpu/torch-parts", limited=False),
)
