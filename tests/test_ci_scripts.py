"""The scripts in ci/: what ci/gpu says where it cannot run, its use of time, and whether tests they name are there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def script(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", ROOT / "ci" / "gpu", folder],
        env=os.environ | {"BNB_CORE_PYTHON": sys.executable, "BNB_CORE_TEST_DEVICE": "cuda"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = script(tmp_path, CUDACXX="no_such_compiler")
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    wanted = "finds no NVIDIA GPU" if torch.version.cuda else "is built without CUDA"
    assert f"torch {torch.__version__} {wanted}" in done.stderr
    assert "nvcc is not on the path, nor named by CUDACXX" in done.stderr


def test_without_torch_it_says_so(tmp_path: Path) -> None:
    alone = f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n'  # the standard library, nothing else
    (tmp_path / "python").write_text(alone)
    (tmp_path / "python").chmod(0o755)
    done = script(tmp_path, BNB_CORE_PYTHON=str(tmp_path / "python"), BNB_CORE_GPU_STEPS="test")
    assert done.returncode == 2
    assert "torch is not installed for" in done.stderr and "pytest is not installed for" in done.stderr
    assert "pybind11" not in done.stderr, "no step needs it"


def test_steps_have_their_share_of_the_time(tmp_path: Path) -> None:
    """On the CPU: a step that was not asked for is not done, one that takes too long is ended and said so."""
    done = script(tmp_path, BNB_CORE_TEST_DEVICE="cpu", BNB_CORE_GPU_STEPS="decoding bench", BNB_CORE_GPU_SECONDS="1")
    assert done.returncode == 1
    first, *steps = (tmp_path / "summary.txt").read_text().splitlines()
    assert f"torch {torch.__version__}" in first
    assert [line.split()[0] for line in steps] == ["bench", "decoding"]
    assert steps[0].split()[1:3] == ["no", "time"]
    assert done.stdout.endswith((tmp_path / "summary.txt").read_text())


@pytest.mark.parametrize("name", ["full", "gpu", "sanitize"])
def test_scripts_name_tests_that_are_there(name: str) -> None:
    named = re.findall(r"(tests/test_[\w*]+\.py)(?:::(\w+))?", (ROOT / "ci" / name).read_text())
    assert named
    for pattern, test in named:
        files = list(ROOT.glob(pattern))
        assert files and (not test or f"def {test}(" in files[0].read_text()), (pattern, test)
