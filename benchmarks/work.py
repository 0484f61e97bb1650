"""What is measured: a work, the contestants that do it, and the targets set for ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["OURS", "Budget", "Contestant", "Family", "Run", "Target", "Work", "distance"]

OURS = "bnb_core"

Run = Callable[[], Any]


@dataclass(frozen=True)
class Contestant:
    """One way to do a work.

    name: its column in the table. make: from the work's inputs, a function that does the work once. package: the
    distribution that has to be installed, None for torch alone. read: a result as a tensor that is near the others'.
    tolerance: how far it may be from ours, ‖theirs - ours‖ / ‖ours‖; None for a limit, which computes something else
    (a copy of as many bytes). setting: entered around each sample. threads_of: whose pool of threads it runs on.
    """

    name: str
    make: Callable[[Any], Run]
    tolerance: float | None = None
    package: str | None = None
    read: Callable[[Any], Tensor] = lambda result: result
    setting: Callable[[], AbstractContextManager[Any]] = nullcontext
    threads_of: str = "torch"

    @property
    def is_limit(self) -> bool:
        """True for what says how fast it could be, not how fast another package is."""
        return self.tolerance is None and self.name != OURS


@dataclass(frozen=True)
class Target:
    """Ours at least `ratio` times as fast as `against`, or as each of them that is here; `hope` would be better.

    label: what `against` is called, where its names would be too long.
    """

    against: str | tuple[str, ...]
    ratio: float
    hope: float | None = None
    label: str = ""

    @property
    def peers(self) -> tuple[str, ...]:
        return (self.against,) if isinstance(self.against, str) else self.against

    @property
    def text(self) -> str:
        hope = f" (hope {self.hope:g}×)" if self.hope else ""
        return f"≥ {self.ratio:g}× {self.label or ' and '.join(self.peers)}{hope}"

    def margin(self, ours: float, ratios: Mapping[str, float]) -> float | None:
        """How far the target is met: 1 is just met, 2 is twice as fast as that; None where there is no such peer."""
        found = [ratios[peer] for peer in self.peers if peer in ratios]
        return min(found) / self.ratio if found else None


@dataclass(frozen=True)
class Budget:
    """Ours in at most so many microseconds: for overhead, where no peer says what it should be."""

    microseconds: float

    @property
    def text(self) -> str:
        return f"≤ {self.microseconds:g} µs"

    def margin(self, ours: float, ratios: Mapping[str, float]) -> float | None:
        """As that of a `Target`."""
        return self.microseconds * 1e-6 / ours


@dataclass(frozen=True)
class Work:
    """A work on inputs of one size.

    name: `family/…`, unique. inputs: makes what all contestants share. contestants: ours first. targets: what the
    design and its issue set; they are reported, and no test holds them.
    """

    name: str
    inputs: Callable[[], Any]
    contestants: Sequence[Contestant]
    targets: Sequence[Target | Budget] = ()

    def __post_init__(self) -> None:
        names = [contestant.name for contestant in self.contestants]
        assert names[0] == OURS and len(set(names)) == len(names), f"{self.name}: {names}"
        unknown = {peer for t in self.targets if isinstance(t, Target) for peer in t.peers} - set(names)
        assert not unknown, f"{self.name} has targets against {unknown}, which are no contestants"


@dataclass(frozen=True)
class Family:
    """Works that share contestants: one table of the report."""

    title: str
    works: Sequence[Work]

    def only(self, chosen: Callable[[str], bool]) -> Family:
        """The family with those of its works whose names are chosen, each name once."""
        return Family(self.title, list({work.name: work for work in self.works if chosen(work.name)}.values()))


def distance(theirs: Tensor, ours: Tensor) -> float:
    """‖theirs - ours‖ / ‖ours‖; infinite for another number of elements."""
    if theirs.numel() != ours.numel():
        return float("inf")
    theirs, ours = theirs.detach().float().flatten(), ours.detach().float().flatten()
    return float(torch.linalg.vector_norm(theirs - ours) / torch.linalg.vector_norm(ours).clamp_min(1e-30))
