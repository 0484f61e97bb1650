"""Kernels for acme, of which 4-bit and int8 layers and 8-bit optimizers are composed."""

from __future__ import annotations

from bnb_core.ops_registry import BackendUnavailable, Kernel

from . import device

API_VERSION = 1


def is_available() -> bool:
    try:
        device.start()
    except ImportError as error:
        raise BackendUnavailable(str(error)) from None
    return True


_LIMITS = {"dequantize_4bit": {"blocksize": {32, 64, 128, 256, 512, 1024, 2048, 4096}}}

KERNELS = tuple(
    Kernel(op=op, device=device.NAME, name="acme/host", fn=f"bnb_core_acme.kernels:{op}", limits=_LIMITS.get(op, {}))
    for op in (
        *("quantize_4bit", "dequantize_4bit"),
        *("quantize_blockwise", "dequantize_blockwise"),
        *("int8_vectorwise_quant", "int8_mm"),
    )
)
