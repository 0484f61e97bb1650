"""`bnb-core new-backend`: the beginning of a backend, which imports, registers two operators and conforms."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from .console import CommandError, console

__all__ = ["add_arguments", "run"]

BACKEND = '''"""Kernels for {device}."""

from bnb_core.ops_registry import Kernel

API_VERSION = 1


def is_available() -> bool:
    # Or raise bnb_core.ops_registry.BackendUnavailable("which driver is missing").
    return True


KERNELS = (
    Kernel(
        op="dequantize_blockwise",
        device="{device}",
        name="{name}/python",
        fn=".kernels:dequantize_blockwise",
        limits={{"code.shape": {{(256,)}}}},
    ),
    Kernel(
        op="int8_vectorwise_dequant",
        device="{device}",
        name="{name}/python",
        fn=".kernels:int8_vectorwise_dequant",
    ),
)
'''

KERNEL_FUNCTIONS = '''"""The kernels: functions with the parameters of their operator. Arguments are checked before."""

from __future__ import annotations

import torch
from torch import Tensor


def dequantize_blockwise(
    A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """`code[A] * absmax` of each block, in fp32, rounded once."""
    scales = absmax.reshape(-1).repeat_interleave(blocksize)[: A.numel()].reshape(A.shape)
    result = (code[A.int()] * scales).to(dtype)
    return result if out is None else out.copy_(result)


def int8_vectorwise_dequant(A: Tensor, stats: Tensor) -> Tensor:
    """`A * stats / 127` of each row, in fp32."""
    return A.float() * stats.reshape(*A.shape[:-1], 1) / 127
'''

TEST = '''"""Each kernel against the reference, with every case of its operator."""

import pytest
import torch
from bnb_core.conformance import conform

from {package}.backend import KERNELS

DEVICE = "{device}"


@pytest.mark.parametrize("op", sorted({{kernel.op for kernel in KERNELS}}))
def test_kernels_conform(op: str) -> None:
    torch.empty(1, device=DEVICE)  # the device is there
    trials = [trial for trial in conform(DEVICE, [op]) if trial.kernel.startswith("{name}/")]
    assert trials and not [failure for trial in trials for failure in trial.failures]
'''

PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{project}"
version = "0.1.0"
description = "Kernels of bnb_core for {device}"
requires-python = ">=3.10"
dependencies = ["bnb-core"]

[project.entry-points."bnb_core.backends"]
{name} = "{package}.backend"

[tool.setuptools]
packages = ["{package}"]
"""

README = """# {project}

Kernels of bnb_core for {device}.

```bash
pip install -e .
python -m bnb_core                               # the backend, and what runs where
bnb-core conformance --device {device}           # every case of each kernel, against the reference
python -m pytest
```

`{package}/backend.py` is the table of kernels, `{package}/kernels.py` the kernels. What is not in the table is composed
of what is, or runs on the reference.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name, device, place."""
    parser.add_argument("name", help="of the backend, as `acme`")
    parser.add_argument("--device", help="device type that torch knows (the name)")
    parser.add_argument("--out-of-tree", type=Path, metavar="DIR", help="a package of its own in DIR, with its tests")


def run(args: argparse.Namespace) -> int:
    """Writes the files; status 0."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", args.name):
        raise CommandError(f"the name is {args.name!r}, expected small letters, digits and underscores")
    if args.device is not None and not re.fullmatch(r"[a-z][a-z0-9_]*", args.device):
        raise CommandError(f"the device is {args.device!r}, expected a type as `cuda`, without an index")
    package = f"bnb_core_{args.name}"
    words = {
        "name": args.name,
        "device": args.device or args.name,
        "package": package,
        "project": package.replace("_", "-"),
    }
    files = _in_tree(args.name) if args.out_of_tree is None else _package(args.out_of_tree, package)
    present = [path for path in files if path.exists()]
    if present:
        raise CommandError(f"{present[0]} is there already")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(**words) if text is not KERNEL_FUNCTIONS else text)
        console().print(f"wrote {path}", markup=False)
    return 0


def _in_tree(name: str) -> dict[Path, str]:
    backends = Path("backends")
    if not (backends / "reference").is_dir():
        raise CommandError("there is no backends/reference here: call it in a clone of bnb_core, or with --out-of-tree")
    return {backends / name / "__init__.py": BACKEND, backends / name / "kernels.py": KERNEL_FUNCTIONS}


def _package(folder: Path, package: str) -> dict[Path, str]:
    return {
        folder / "pyproject.toml": PROJECT,
        folder / "README.md": README,
        folder / package / "__init__.py": '"""Kernels of bnb_core for {device}."""\n',
        folder / package / "backend.py": BACKEND.replace('fn=".kernels', 'fn="{package}.kernels'),
        folder / package / "kernels.py": KERNEL_FUNCTIONS,
        folder / "tests" / "test_conformance.py": TEST,
    }
