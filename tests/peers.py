"""The two distributions that are imported as `bitsandbytes`: the drop-in of this repository, and the public package."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

import pytest

from benchmarks.peers import DROP_IN


def _version() -> str:
    try:
        return importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        return ""


def drop_in() -> ModuleType:
    """This repository's; skips where it is not installed."""
    if not _version().endswith(DROP_IN):
        pytest.skip("the drop-in is not installed: pip install ./compat")
    return importlib.import_module("bitsandbytes")


def public_package() -> ModuleType:
    """The public package; skips where it is not installed."""
    if not _version() or _version().endswith(DROP_IN):
        pytest.skip("the public package bitsandbytes is not installed")
    return importlib.import_module("bitsandbytes")


def integration(*packages: str) -> None:
    """Skips where one of the packages is not installed, or transformers does not take this torch."""
    for package in packages:
        found = pytest.importorskip(package, reason=f"{package} is not installed")
        if package == "transformers" and not found.utils.is_torch_available():
            pytest.skip("this transformers wants a newer torch", allow_module_level=True)
