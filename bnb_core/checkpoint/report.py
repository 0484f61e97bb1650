"""What a quantization run tells afterwards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .weights import Settings

__all__ = ["Report", "WeightReport"]


@dataclass(frozen=True)
class WeightReport:
    """One quantized weight. relative_error: ‖W - Q‖ / ‖W‖; mean_abs_error: mean |W - Q|; None where W is not finite."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes_before: int
    bytes_after: int
    relative_error: float | None
    mean_abs_error: float | None


@dataclass(frozen=True)
class Report:
    """A finished run.

    weights: the quantized weights, in the order of the files. kept: 2-D weights that stayed as they were → why.
    bytes_before, bytes_after: of all tensor files. resumed: files taken over from an interrupted run.
    notes: sentences that the user should read.
    """

    out: Path
    settings: Settings
    weights: Sequence[WeightReport]
    kept: dict[str, str]
    bytes_before: int
    bytes_after: int
    resumed: Sequence[str]
    notes: Sequence[str]

    def worst(self, count: int) -> list[WeightReport]:
        """The weights of largest relative error; those that are not finite come first."""

        def error(weight: WeightReport) -> float:
            return float("inf") if weight.relative_error is None else weight.relative_error

        return sorted(self.weights, key=error, reverse=True)[:count]

    def kept_reasons(self) -> list[tuple[str, int]]:
        """Reasons why 2-D weights were kept, with how many there are, most frequent first."""
        return Counter(self.kept.values()).most_common()

    def to_json(self) -> str:
        """The report as it stands beside the checkpoint; it names no folder of the machine."""
        found: dict[str, Any] = asdict(self)
        del found["out"], found["resumed"]
        return json.dumps(found, indent=2, allow_nan=False) + "\n"
