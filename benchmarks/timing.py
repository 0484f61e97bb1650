"""How contestants are timed: in rounds, each of which runs every contestant for a moment, in a new order.

What disturbs a machine (another process, its clock, its temperature) lasts longer than a round, so it meets all
contestants of a round alike. The ratio of two is therefore taken within each round, and its median over the rounds is
what is reported; a ratio of two medians would compare different moments.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

__all__ = ["Pace", "Racer", "notch", "race", "seconds_of"]

# A worker of an OpenMP runtime spins after its work before it sleeps (3 to 7 ms on a 2.4 GHz Zen 3). Where the next
# contestant has threads of its own, that would cost it a core.
SETTLE = 0.01
# Of faster calls than this the first in a sample is not timed: it finds the caches as another contestant left them.
WARM_BELOW = 0.02


@dataclass(frozen=True)
class Pace:
    """How long to measure. seconds: for one contestant of one work. sample: least length of a sample.

    rounds: least and most of them; measuring ends when the notch of every ratio is within `precision`.
    """

    seconds: float = 0.6
    sample: float = 2e-3
    rounds: tuple[int, int] = (5, 60)
    precision: float = 0.015
    patience: float = 1.5  # a contestant whose single call takes longer than this is called as rarely as possible


@dataclass
class Racer:
    """A contestant in the race; `samples` holds the seconds of a call by round, None where it sat one out."""

    run: Callable[[], Any]
    setting: Callable[[], AbstractContextManager[Any]]
    threads_of: str
    calls: int = 1
    rounds: int = 1
    warm: bool = False
    samples: list[float | None] = field(default_factory=list)

    def calibrate(self, pace: Pace) -> None:
        """Sets calls a sample, and rounds, from the time of calls that follow a first one."""
        with self.setting():
            seconds = seconds_of(self.run, 1)
            if seconds < pace.patience:  # the best of three: one that was disturbed would mean few rounds
                seconds = min(seconds, seconds_of(self.run, 1), seconds_of(self.run, 1))
            while seconds * self.calls < pace.sample / 2:
                self.calls *= 2
                seconds = min(seconds, seconds_of(self.run, self.calls))
        self.calls = max(1, round(pace.sample / seconds))
        self.warm = seconds < WARM_BELOW
        least, most = pace.rounds
        if seconds > pace.patience:
            least = 1
        self.rounds = max(least, min(most, int(pace.seconds / (seconds * (self.calls + self.warm)))))

    def sample(self) -> float:
        """Seconds of a call, in the mean over one sample."""
        with self.setting():
            if self.warm:
                self.run()
            return seconds_of(self.run, self.calls)


def seconds_of(run: Callable[[], Any], calls: int) -> float:
    """Seconds of a call, in the mean of so many."""
    start = time.perf_counter()
    for _ in repeat(None, calls):
        run()
    return (time.perf_counter() - start) / calls


def race(racers: Sequence[Racer], pace: Pace) -> None:
    """Fills the samples of all racers. The first is in every round; a slow one sits rounds out, evenly."""
    with _collector_off():
        for racer in racers:
            racer.calibrate(pace)
        order, shuffle = list(racers), random.Random(0).shuffle
        pool = None
        rounds = racers[0].rounds
        for number in range(rounds):
            shuffle(order)
            running = [racer for racer in order if _takes_part(racer, number, rounds) or racer is racers[0]]
            for racer in racers:
                racer.samples.append(None)
            for racer in running:
                if racer.threads_of != pool:
                    time.sleep(SETTLE)
                    pool = racer.threads_of
                racer.samples[-1] = racer.sample()
            if number + 1 >= pace.rounds[0] and all(_settled(racer, racers[0], pace) for racer in racers[1:]):
                return


def _takes_part(racer: Racer, number: int, rounds: int) -> bool:
    share = min(1.0, racer.rounds / rounds)
    return int((number + 1) * share + 1e-9) > int(number * share + 1e-9)


def _settled(racer: Racer, ours: Racer, pace: Pace) -> bool:
    ratios = [a / b for a, b in pairs(racer, ours)]
    if len(ratios) >= racer.rounds:
        return True
    if len(ratios) < pace.rounds[0]:
        return False
    return notch(ratios) < pace.precision * statistics.median(ratios)


def pairs(racer: Racer, ours: Racer) -> Iterator[tuple[float, float]]:
    """Their time and ours in the rounds that both took part in."""
    for theirs, own in zip(racer.samples, ours.samples, strict=True):
        if theirs is not None and own is not None:
            yield theirs, own


def notch(values: Sequence[float]) -> float:
    """Half the width of the notch of a box plot: about the 95 % interval of a median (McGill, Tukey, Larsen 1978)."""
    if len(values) < 2:
        return float("inf")
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return 1.57 * (high - low) / len(values) ** 0.5


@contextmanager
def _collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
