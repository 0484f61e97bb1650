"""Finding backends: the folders of a package, then the entry points of group `bnb_core.backends`.

A backend that cannot be used is recorded with its reason and never breaks the import of the library.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal

from .dispatch import register_kernels
from .kernels import REFERENCE, Kernel
from .paging import register_paged_memory
from .settings import check_environment

__all__ = ["API_VERSION", "ENTRY_POINT_GROUP", "BackendRecord", "BackendUnavailable", "backends", "discover", "load"]

API_VERSION = 1
ENTRY_POINT_GROUP = "bnb_core.backends"


class BackendUnavailable(Exception):
    """Raised by a backend's `is_available()`: what is missing, as a sentence."""


@dataclass(frozen=True)
class BackendRecord:
    """What became of a backend: `loaded`, `unavailable` (nothing is wrong, it cannot run here) or `failed`.

    package: name and version of the distribution that its entry point is of.
    """

    name: str
    source: str
    status: Literal["loaded", "unavailable", "failed"]
    reason: str = ""
    kernels: tuple[Kernel, ...] = ()
    package: str = ""


_records: list[BackendRecord] = []


def backends() -> tuple[BackendRecord, ...]:
    """What discovery found, in the order it looked."""
    return tuple(_records)


def load(name: str, source: str, find_module: Callable[[], ModuleType], package: str = "") -> BackendRecord:
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
        record = BackendRecord(name, source, "loaded", "", kernels, package)
    except BackendUnavailable as error:
        record = BackendRecord(name, source, "unavailable", str(error), package=package)
    except (Exception, SystemExit) as error:  # noqa: BLE001  a vendor's module may raise anything; none of it may break ours
        reason = f"{type(error).__name__}: {error}{_place(error)}"
        record = BackendRecord(name, source, "failed", reason, package=package)
    _records.append(record)
    return record


def _place(error: BaseException) -> str:
    """Where a backend's own line raised it; empty where discovery or the import system did."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    ours = {Path(str(module)).parent for module in (__file__, importlib.__file__, importlib.metadata.__file__)}
    return "" if Path(frames[-1].filename).parent in ours else f" ({frames[-1].filename}:{frames[-1].lineno})"


def discover(package: str) -> None:
    """Loads the backends under `package`, the reference first, then those of the entry points.

    Raises ValueError where `BNB_CORE_FALLBACK` is no policy or `BNB_CORE_FORCE` names a kernel that is not there, with
    the reasons of the backends that did not load, and ImportError where the reference itself fails.
    """
    folder = importlib.import_module(package)
    found = {module.name for module in pkgutil.iter_modules(folder.__path__) if not module.name.startswith("_")}
    for name in (REFERENCE, *sorted(found - {REFERENCE})):
        module = f"{package}.{name}"
        load(name, module, partial(importlib.import_module, module))
    if _records[0].status != "loaded":
        raise ImportError(f"the reference backend of bnb_core did not load: {_records[0].reason}")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        package = "" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
        load(entry.name, f"entry point {entry.value}", entry.load, package)
    missing = "".join(f"; backend {r.name} is {r.status}: {r.reason}" for r in _records if r.status != "loaded")
    check_environment(missing)
