"""After a test that loses the GPU the others run in another process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from installed import python

# Stands for a GPU that one test of this process loses.
TESTS = """
import pytest, torch
here = {"lost": False}
torch.cuda.is_initialized = lambda: True
def synchronize():
    if here["lost"]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\\nand more")
torch.cuda.synchronize = synchronize
@pytest.mark.parametrize("number", range(6))
def test_of_a_kernel(number):
    assert not here["lost"]
    here["lost"] = number == 1
"""


@pytest.mark.parametrize("workers", [None, 1])
def test_the_next_tests_run_elsewhere(workers: int | None, tmp_path: Path) -> None:
    if workers and importlib.util.find_spec("xdist") is None:
        pytest.skip("pytest-xdist is not installed")
    (tmp_path / "test_lost.py").write_text(TESTS)
    several = () if workers is None else ("--numprocesses", workers)
    command = ("-m", "pytest", "-q", "-p", "lost_device", "-p", "no:cacheprovider", *several, "test_lost.py")
    done = python(*command, path=(Path(__file__).parent,), cwd=tmp_path)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "test_of_a_kernel[1] the GPU takes no more work" in said and "an illegal memory access" in said
    if workers:
        assert (
            "1 failed, 6 passed" in done.stdout and "crashed while running 'test_lost.py::test_of_a_kernel[1]'" in said
        )
    else:
        assert "2 passed" in done.stdout
