"""Whether a device does what the registry says: each kernel with every case of its operator, then layers and
optimizers.

`conform` tries the kernels of a device, `end_to_end` what is built on them; `try_case` and `try_scenario` show one
failure again. The cases, the checks and the tolerances are those of `ops_registry`; the reference on the CPU says what
is right. Start reading at `attempts.py` (what is tried of a kernel) and `scenarios.py` (of a device).
"""

from __future__ import annotations

from .findings import Failure, Findings, KernelTrial, ScenarioTrial, Speed, Tally
from .page import as_html
from .report import as_json, as_markdown, claims, times
from .run import LEVELS, DeviceLost, conform, operators_of, try_case
from .scenarios import SCENARIOS, end_to_end, try_scenario
from .speed import speed_of

__all__ = [
    "LEVELS",
    "SCENARIOS",
    "DeviceLost",
    "Failure",
    "Findings",
    "KernelTrial",
    "ScenarioTrial",
    "Speed",
    "Tally",
    "as_html",
    "as_json",
    "as_markdown",
    "claims",
    "conform",
    "end_to_end",
    "operators_of",
    "speed_of",
    "times",
    "try_case",
    "try_scenario",
]
