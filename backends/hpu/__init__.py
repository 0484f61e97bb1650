"""Kernels for Intel Gaudi: its own decoding of NF4, of which the 4-bit layers are composed."""

from importlib.util import find_spec

import torch

from bnb_core.ops_registry import BackendUnavailable, Kernel

API_VERSION = 1


def is_available() -> bool:
    """True where Gaudi's software is installed and finds a card; raises BackendUnavailable where not."""
    if find_spec("habana_frameworks") is None:
        raise BackendUnavailable("habana_frameworks is not installed")
    module = getattr(torch, "hpu", None)
    if module is None or not module.is_available():
        raise BackendUnavailable("torch finds no HPU")
    return True


KERNELS = (
    Kernel(
        op="dequantize_4bit",
        device="hpu",
        name="hpu/gaudi",
        fn=".fourbit:dequantize_4bit",
        limits={"quant_type": {"nf4"}},
    ),
)
