"""What the README shows, run."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from bnb_core import optim
from bnb_core.ops_registry import OPS

README = Path(__file__).parents[1] / "README.md"
OPTIMIZERS = README.parent / "docs" / "optimizers.md"


def test_quick_start_runs() -> None:
    first, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(first, str(README), "exec"), names)
    out = names["out"]
    assert isinstance(out, torch.Tensor)
    assert (out.shape, out.dtype) == ((8, 4096), torch.bfloat16)


def test_page_of_the_optimizers_runs_and_names_all_of_them() -> None:
    page = OPTIMIZERS.read_text()
    names: dict[str, object] = {"model": torch.nn.ModuleDict({"embedding": torch.nn.Embedding(64, 64)})}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, str(OPTIMIZERS), "exec"), names)
    made = names["optimizer"]
    assert isinstance(made, optim.AdamW) and made.defaults["optim_bits"] == 8
    classes = {re.sub(r"^Paged|(8|32)bit$", "", name) for name in optim.__all__} - {"KBitOptimizer"}
    assert classes <= set(re.findall(r"`(\w+)`", page))


def test_support_table_speaks_of_operators_that_exist() -> None:
    table = [line for line in README.read_text().splitlines() if line.startswith("| ") and "`" in line]
    named = [name for line in table for name in re.findall(r"`(\w+)`", line)]
    assert named
    assert set(named) <= set(OPS)
