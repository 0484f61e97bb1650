"""What the README shows, run."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from bnb_core.ops_registry import OPS

README = Path(__file__).parents[1] / "README.md"


def test_quick_start_runs() -> None:
    first, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(first, str(README), "exec"), names)
    out = names["out"]
    assert isinstance(out, torch.Tensor)
    assert (out.shape, out.dtype) == ((8, 4096), torch.bfloat16)


def test_support_table_speaks_of_operators_that_exist() -> None:
    table = [line for line in README.read_text().splitlines() if line.startswith("| ") and "`" in line]
    named = [name for line in table for name in re.findall(r"`(\w+)`", line)]
    assert named
    assert set(named) <= set(OPS)
