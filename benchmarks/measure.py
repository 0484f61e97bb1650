"""Measures one work: builds its contestants, checks what each computes against ours, then races them."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bnb_core.ops_registry import force, kernel_counts, reset_kernel_counts

from .peers import missing
from .timing import Pace, Racer, notch, pairs, race
from .work import Contestant, Work, distance

__all__ = ["Measured", "Outcome", "Verdict", "measure"]


@dataclass(frozen=True)
class Measured:
    """A contestant's times, and how often ours does the work in its time (ratio).

    limit: it is no peer, but what could be reached. absent: why there are no times. seconds and ratio: medians over the
    rounds. best, best_ratio: of its fastest sample, and of that and our fastest. spread: half the 95 % interval of
    ratio. distance: of its result to ours.
    """

    name: str
    limit: bool = False
    absent: str | None = None
    seconds: float | None = None
    best: float | None = None
    ratio: float | None = None
    best_ratio: float | None = None
    spread: float | None = None
    rounds: int = 0
    calls: int = 0
    distance: float | None = None
    tolerance: float | None = None

    def by(self, best: bool) -> tuple[float | None, float | None]:
        """Seconds and ratio, by the median or by the best."""
        return (self.best, self.best_ratio) if best else (self.seconds, self.ratio)


@dataclass(frozen=True)
class Verdict:
    """A target and how far it is met; margin 1 is just met, None where its peer is not here."""

    text: str
    margin: float | None

    @property
    def word(self) -> str:
        return "unknown" if self.margin is None else "met" if self.margin >= 1 else "missed"


@dataclass(frozen=True)
class Outcome:
    """What came out of a work. kernels: op → the kernel that ran it."""

    work: str
    kernels: dict[str, str]
    contestants: list[Measured]
    verdicts: list[Verdict]

    @property
    def ours(self) -> Measured:
        return self.contestants[0]

    def as_json(self) -> dict[str, Any]:
        return {
            "work": self.work,
            "kernels": self.kernels,
            "contestants": [asdict(contestant) for contestant in self.contestants],
            "targets": [{**asdict(verdict), "verdict": verdict.word} for verdict in self.verdicts],
        }


class _Unfit(Exception):
    """A contestant that is not raced, and why."""


def measure(work: Work, pace: Pace, peers: Collection[str], kernels: Sequence[str] = (), best: bool = False) -> Outcome:
    """kernels: names of our kernels that take part as contestants of their own. best: judge targets by best times.

    Raises what ours raises.
    """
    torch.manual_seed(0)
    inputs = work.inputs()
    ours, *others = work.contestants
    others = [*(_forced(ours, kernel) for kernel in kernels), *others]

    racers = {ours.name: _racer(ours, inputs)}
    result, ran = _first_call(racers[ours.name])
    expected = ours.read(result).clone()
    del result
    entries = [Measured(ours.name)]
    for other in others:
        absent = missing(other.package, peers) if other.name not in kernels else None
        if absent is None:
            try:
                racers[other.name], entry = _checked(other, inputs, expected, kernels)
            except _Unfit as reason:
                entry = Measured(other.name, absent=str(reason))
        else:
            entry = Measured(other.name, absent=absent)
        entries.append(entry)
    del expected
    race(list(racers.values()), pace)

    first = racers[ours.name]
    contestants = [_timed(entry, racers[entry.name], first) if entry.name in racers else entry for entry in entries]
    found = {entry.name: entry.by(best) for entry in contestants}
    ratios = {name: ratio for name, (_, ratio) in found.items() if ratio is not None}
    own, _ = found[ours.name]
    assert own is not None
    verdicts = [Verdict(target.text, target.margin(own, ratios)) for target in work.targets]
    return Outcome(work.name, ran, contestants, verdicts)


def _forced(ours: Contestant, kernel: str) -> Contestant:
    return replace(ours, name=kernel, tolerance=1e-2, setting=lambda: force(kernel))


def _racer(contestant: Contestant, inputs: Any) -> Racer:
    with contestant.setting():
        run = contestant.make(inputs)
    return Racer(run, contestant.setting, contestant.threads_of)


def _first_call(racer: Racer) -> tuple[Any, dict[str, str]]:
    """The result, and our kernels that ran: op → name."""
    reset_kernel_counts()
    with racer.setting():
        result = racer.run()
    return result, {op: kernel for (op, _, kernel) in kernel_counts()}


def _checked(
    contestant: Contestant, inputs: Any, expected: torch.Tensor, kernels: Sequence[str]
) -> tuple[Racer, Measured]:
    """The contestant after a first call, whose result is near enough to ours."""
    try:
        racer = _racer(contestant, inputs)
        result, ran = _first_call(racer)
        result = contestant.read(result)
    except Exception as error:  # a peer may fail in any way; the others are measured all the same
        raise _Unfit(f"failed: {type(error).__name__}: {error}") from error
    if contestant.name in kernels and contestant.name not in ran.values():
        raise _Unfit("no such kernel for these ops")
    if contestant.tolerance is None:
        return racer, Measured(contestant.name, limit=True)
    found = distance(result, expected)
    if not found <= contestant.tolerance:
        raise _Unfit(f"wrong: its result is {found:.2g} away from ours, more than {contestant.tolerance:g}")
    return racer, Measured(contestant.name, distance=found, tolerance=contestant.tolerance)


def _timed(entry: Measured, racer: Racer, ours: Racer) -> Measured:
    samples = [sample for sample in racer.samples if sample is not None]
    ratios = [theirs / own for theirs, own in pairs(racer, ours)]
    return replace(
        entry,
        seconds=statistics.median(samples),
        best=min(samples),
        ratio=statistics.median(ratios),
        best_ratio=min(samples) / min(sample for sample in ours.samples if sample is not None),
        spread=notch(ratios) if len(ratios) > 1 else None,
        rounds=len(samples),
        calls=racer.calls,
    )
