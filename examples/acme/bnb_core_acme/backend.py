"""Kernels for acme: two of their own, with which 4-bit layers are composed."""

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


KERNELS = (
    Kernel(op="quantize_4bit", device=device.NAME, name="acme/host", fn="bnb_core_acme.kernels:quantize_4bit"),
    Kernel(
        op="dequantize_4bit",
        device=device.NAME,
        name="acme/host",
        fn="bnb_core_acme.kernels:dequantize_4bit",
        limits={"blocksize": {32, 64, 128, 256, 512, 1024, 2048, 4096}},
    ),
)
