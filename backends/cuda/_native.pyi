"""Kernels for NVIDIA GPUs: each function takes the number of a device and the address of a stream there first."""

from typing import Any

def __getattr__(name: str) -> Any: ...
