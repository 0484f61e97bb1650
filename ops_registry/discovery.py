"""Finding backends: the folders of a package, then the entry points of group `bnb_core.backends`.

A backend that cannot be used is recorded with its reason and never breaks the import of the library.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Literal

from .dispatch import register_kernels
from .kernels import REFERENCE, Kernel
from .paging import register_paged_memory
from .settings import refuse_unknown_names, settings

__all__ = ["API_VERSION", "ENTRY_POINT_GROUP", "BackendRecord", "BackendUnavailable", "backends", "discover", "load"]

API_VERSION = 1
ENTRY_POINT_GROUP = "bnb_core.backends"


class BackendUnavailable(Exception):
    """Raised by a backend's `is_available()`: what is missing, as a sentence."""


@dataclass(frozen=True)
class BackendRecord:
    """What became of a backend: `loaded`, `unavailable` (nothing is wrong, it cannot run here) or `failed`."""

    name: str
    source: str
    status: Literal["loaded", "unavailable", "failed"]
    reason: str = ""
    kernels: tuple[Kernel, ...] = ()


_records: list[BackendRecord] = []


def backends() -> tuple[BackendRecord, ...]:
    """What discovery found, in the order it looked."""
    return tuple(_records)


def load(name: str, source: str, find_module: Callable[[], ModuleType]) -> BackendRecord:
    """Imports one backend, registers its rows, and records what came of it.

    A backend module has `API_VERSION`, `is_available()` and `KERNELS`, and may have a `shortcut` (see `dispatch`) and
    a `paged_memory` for the devices of its rows (see `paging`).
    Whatever it raises becomes the record's reason.
    """
    try:
        module = find_module()
        if getattr(module.__spec__, "_initializing", False):
            raise ImportError(
                f"{module.__name__} imports bnb_core while it is being imported itself: import bnb_core first, or let "
                "the entry point name a module inside that holds the table"
            )
        found = getattr(module, "API_VERSION", None)
        if found != API_VERSION:
            raise ImportError(f"it is written for API_VERSION {found}, this bnb_core has API_VERSION {API_VERSION}")
        if not module.is_available():
            raise BackendUnavailable("is_available() returned False")
        kernels = tuple(replace(kernel, backend=module.__name__) for kernel in module.KERNELS)
        register_kernels(kernels, getattr(module, "shortcut", None))
        if hasattr(module, "paged_memory"):
            for device in {kernel.device for kernel in kernels}:
                register_paged_memory(device, module.paged_memory)
        record = BackendRecord(name, source, "loaded", kernels=kernels)
    except BackendUnavailable as error:
        record = BackendRecord(name, source, "unavailable", str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001  a vendor's module may raise anything; none of it may break ours
        record = BackendRecord(name, source, "failed", f"{type(error).__name__}: {error}")
    _records.append(record)
    return record


def discover(package: str) -> None:
    """Loads the backends under `package`, the reference first, then those of the entry points.

    Raises ValueError where `BNB_CORE_FORCE` names a kernel that is not there, with the reasons of the backends that did
    not load, and ImportError where the reference itself fails.
    """
    folder = importlib.import_module(package)
    found = {module.name for module in pkgutil.iter_modules(folder.__path__) if not module.name.startswith("_")}
    for name in (REFERENCE, *sorted(found - {REFERENCE})):
        module = f"{package}.{name}"
        load(name, module, partial(importlib.import_module, module))
    if _records[0].status != "loaded":
        raise ImportError(f"the reference backend of bnb_core did not load: {_records[0].reason}")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        load(entry.name, f"entry point {entry.value}", entry.load)
    missing = "".join(f"; backend {r.name} is {r.status}: {r.reason}" for r in _records if r.status != "loaded")
    refuse_unknown_names(settings.forced, missing)
