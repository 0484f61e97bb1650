"""How the kernels divide their work, by kind of GPU: the tables that `python -m bnb_core.backends.triton.tune` writes.

A table is, for each architecture and kernel, a list of rungs: what a launch takes for up to `rows` rows, in rising
order. A rung without `rows` is for any number, a last one without anything else says that another way is faster.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["OWN", "VARIABLE", "architecture", "fixed", "read", "tile"]

OWN = Path(__file__).with_name("tiles.json")
# A file of the user's, for a GPU that the package's table does not know or knows badly.
VARIABLE = "BNB_CORE_TRITON_TILES"
ANY = "any"  # the architecture of those that are not in a table

Rung = dict[str, int]
Table = dict[str, dict[str, list[Rung]]]

_fixed: ContextVar[tuple[str, Rung]] = ContextVar("fixed", default=("", {}))


def tile(kernel: str, device: torch.device, rows: int = 1) -> Rung:
    """Sizes, `num_warps` and `num_stages` of a launch for so many rows; empty where the kernel is not to be taken."""
    name, rung = _fixed.get()
    if name == kernel:
        return dict(rung)
    for rung in _rungs(kernel, architecture(device)):
        if rows <= rung.get("rows", rows):
            return {name: value for name, value in rung.items() if name != "rows"}
    return {}


@contextmanager
def fixed(kernel: str, rung: Rung) -> Iterator[None]:
    """Launches of a kernel take this, whatever the tables say."""
    token = _fixed.set((kernel, rung))
    try:
        yield
    finally:
        _fixed.reset(token)


@cache
def architecture(device: torch.device) -> str:
    """`sm_90`, `gfx942`, or the name of a GPU that has no such number.

    `any` for the CPU, which interprets kernels, and for a GPU that is not there.
    """
    module = None if device.type == "cpu" else torch.get_device_module(device.type)
    if module is None or not module.is_available():
        return ANY
    properties = module.get_device_properties(device)
    if device.type != "cuda":
        return str(properties.name)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@cache
def _rungs(kernel: str, arch: str) -> list[Rung]:
    own = read(OWN)
    for table in ([read(Path(user))] if (user := os.environ.get(VARIABLE)) else []) + [own]:
        if kernel in table.get(arch, {}):
            return table[arch][kernel]
    return own[ANY][kernel]


def read(path: Path) -> Table:
    """A table. Raises ValueError for a file that holds none."""
    try:
        table: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no table of tiles: {error}") from error
    if not _is_table(table):
        raise ValueError(f"{path} is no table of tiles: expected rungs of numbers, by architecture and kernel")
    return table


def _is_table(table: Any) -> bool:
    return isinstance(table, dict) and all(
        isinstance(kernels, dict)
        and all(
            isinstance(rungs, list) and rungs and all(isinstance(rung, dict) and _numbers(rung) for rung in rungs)
            for rungs in kernels.values()
        )
        for kernels in table.values()
    )


def _numbers(rung: dict[str, Any]) -> bool:
    return all(type(value) is int and value > 0 for value in rung.values())
