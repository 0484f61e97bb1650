"""What the README shows, run."""

from __future__ import annotations

import re
import tempfile
import warnings
from pathlib import Path

import peers
import pytest
import torch
from test_layer_tracing import ONE_GRAPH

from bnb_core import optim
from bnb_core.ops_registry import OPS

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"
OPTIMIZERS = DOCS / "optimizers.md"

# What a page needs beside bnb_core.
NEEDS = {
    "quantize": ("transformers", "accelerate"),
    "qlora": ("transformers", "accelerate", "peft"),
    "drop_in": (),
    "compile": (),
}


def python_of(page: Path) -> str:
    """The Python blocks of a page as one script, whose lines have the numbers of the page."""
    parts = re.split(r"(```python\n.*?```)", page.read_text(), flags=re.DOTALL)
    return "".join(
        "\n" + part[len("```python\n") : -3] if part.startswith("```python\n") else re.sub(r"[^\n]", "", part)
        for part in parts
    )


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
    exec(compile(python_of(OPTIMIZERS), str(OPTIMIZERS), "exec"), names)
    made = names["optimizer"]
    assert isinstance(made, optim.AdamW) and made.defaults["optim_bits"] == 8
    classes = {re.sub(r"^Paged|(8|32)bit$", "", name) for name in optim.__all__} - {"KBitOptimizer"}
    assert classes <= set(re.findall(r"`(\w+)`", page))


@pytest.mark.parametrize("name", NEEDS)
def test_page_runs_as_a_script(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "compile" and not ONE_GRAPH:
        pytest.skip("torch < 2.8 does not trace a subclass of Parameter")
    if name != "compile":
        peers.drop_in()
    peers.integration(*NEEDS[name])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    page = DOCS / f"{name}.md"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(python_of(page), str(page), "exec"), {"__name__": "__main__"})


def test_each_page_is_in_the_readme() -> None:
    assert {page.name for page in DOCS.glob("*.md")} == set(re.findall(r"\(docs/([\w-]+\.md)", README.read_text()))


def test_support_table_speaks_of_operators_that_exist() -> None:
    table = [line for line in README.read_text().splitlines() if line.startswith("| ") and "`" in line]
    named = [name for line in table for name in re.findall(r"`(\w+)`", line)]
    assert named
    assert set(named) <= set(OPS)
