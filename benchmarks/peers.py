"""The packages that bnb_core is compared with: which are here, in which version."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection

__all__ = ["PEERS", "missing", "versions"]

# What a peer's contestants import, by the name that the command line takes.
PEERS = {
    "torch": ("torch",),
    "bitsandbytes": ("bitsandbytes",),
    "torchao": ("torchao",),
    "onnxruntime": ("onnxruntime", "onnx"),
}

# How the version ends of the distribution of compat/, which computes what bnb_core does.
DROP_IN = "+bnb.core"


def missing(package: str | None, chosen: Collection[str]) -> str | None:
    """Why a peer cannot take part, in words; None where it can."""
    peer = package or "torch"
    if peer not in chosen:
        return "not chosen"
    if peer == "bitsandbytes" and (_version(peer) or "").endswith(DROP_IN):
        return "what is installed by that name is bnb_core's drop-in"
    absent = [name for name in PEERS[peer] if _version(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None


def versions() -> dict[str, str | None]:
    """Versions of what all peers import, None for what is not installed."""
    return {name: _version(name) for names in PEERS.values() for name in names}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
