"""What a conformance run finds: of each kernel, and of layers and optimizers on the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Failure", "Findings", "KernelTrial", "Kind", "ScenarioTrial", "Speed", "Tally"]


Kind = Literal["native", "composed", "reference"]


@dataclass(frozen=True)
class Failure:
    """One case that went wrong. program: three lines of Python that show it again."""

    aspect: str
    case: str
    sentences: tuple[str, ...]
    program: str


@dataclass
class Tally:
    """How many cases passed, were refused as the kernel declares, and failed.

    share: the largest distance to the reference, as a share of the tolerance.
    """

    passed: int = 0
    refused: int = 0
    failed: int = 0
    share: float = 0.0


@dataclass(frozen=True)
class Speed:
    """Seconds of one call on `megabytes` of arguments and results, of the reference on the same device, and of a copy
    on that device that moves as many bytes.
    """

    megabytes: float
    seconds: float
    reference: float
    copy: float


@dataclass
class KernelTrial:
    """What became of one kernel.

    kind: native, composed of other operators, or the reference: on another device than the CPU, torch's operations on
    that device, compared with the CPU's.
    aspects, dtypes: the cases by what was tried, and by the dtype that they compute in.
    """

    op: str
    kernel: str
    kind: Kind
    aspects: dict[str, Tally] = field(default_factory=dict)
    dtypes: dict[str, Tally] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    speed: Speed | None = None

    @property
    def passed(self) -> int:
        return sum(tally.passed for tally in self.aspects.values())

    @property
    def refused(self) -> int:
        return sum(tally.refused for tally in self.aspects.values())

    @property
    def share(self) -> float:
        return max((tally.share for tally in self.aspects.values()), default=0.0)


@dataclass(frozen=True)
class ScenarioTrial:
    """What became of layers or an optimizer on the device. levels: the claims that take it. kernels: `operator: kernel`
    of all that ran there.
    """

    name: str
    levels: tuple[str, ...]
    kernels: tuple[str, ...] = ()
    failure: Failure | None = None


@dataclass
class Findings:
    """A whole run. machine: what stands at the head of its report, by name."""

    device: str
    level: str
    machine: dict[str, str]
    kernels: list[KernelTrial] = field(default_factory=list)
    scenarios: list[ScenarioTrial] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many kernels and scenarios have a failure."""
        return sum(bool(trial.failures) for trial in self.kernels) + sum(bool(s.failure) for s in self.scenarios)
