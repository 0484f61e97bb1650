"""Quantizing model folders of safetensors files, in bounded memory, into checkpoints that transformers loads.

`quantize_checkpoint` does it in one call; `plan(...).run(...)` does it in two.
"""

from __future__ import annotations

from .files import CheckpointError
from .job import Job, plan, quantize_checkpoint
from .report import Report, WeightReport
from .weights import BLOCKSIZES, FORMATS, Settings

__all__ = [
    "BLOCKSIZES",
    "FORMATS",
    "CheckpointError",
    "Job",
    "Report",
    "Settings",
    "WeightReport",
    "plan",
    "quantize_checkpoint",
]
