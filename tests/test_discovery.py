"""Backends from outside: found by entry point, isolated when they fail. Each test installs a toy package."""

from __future__ import annotations

import subprocess
from pathlib import Path

import installed
import pytest

pytestmark = pytest.mark.usefixtures("nothing_forced")

TOY = '''"""A toy backend."""
import torch
from bnb_core.ops_registry import BackendUnavailable, Kernel

API_VERSION = 1


def is_available():
    return True


def dequant(A, stats):
    return torch.full(A.shape, 42.0)


KERNELS = (Kernel(op="int8_vectorwise_dequant", device="cpu", name="acme/fast", fn=dequant, priority=99),)
'''

PROGRAM = """
import torch, bnb_core
from bnb_core import ops_registry
for record in ops_registry.backends():
    print(record.name, "|", record.source, "|", record.status, "|", record.reason)
print(torch.ops.bnb_core.int8_vectorwise_dequant(torch.ones(1, 1, dtype=torch.int8), torch.ones(1)).item())
"""


def install(site: Path, source: str, name: str = "acme") -> None:
    """Installs a package of one module."""
    (installed.install(site, name, name) / f"{name}.py").write_text(source)


def run(site: Path, program: str = PROGRAM, **environment: str) -> subprocess.CompletedProcess[str]:
    return installed.python("-c", program, path=(site,), **environment)


def record_of(done: subprocess.CompletedProcess[str], name: str = "acme") -> str:
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stdout.splitlines() if line.startswith(f"{name} |"))


def value_of(done: subprocess.CompletedProcess[str]) -> float:
    return float(done.stdout.splitlines()[-1])


def test_entry_point_backend_runs(tmp_path: Path) -> None:
    install(tmp_path, TOY)
    done = run(tmp_path)
    assert record_of(done) == "acme | entry point acme | loaded | "
    assert value_of(done) == 42


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (
            ("API_VERSION = 1", "API_VERSION = 7"),
            "failed",
            "it is written for API_VERSION 7, this bnb_core has API_VERSION 1",
        ),
        (("API_VERSION = 1", ""), "failed", "it is written for API_VERSION None"),
        (("import torch\n", "import torch, no_such_module\n"), "failed", "No module named 'no_such_module'"),
        (("import torch\n", "import torch\n1 / 0\n"), "failed", "ZeroDivisionError"),
        (("import torch\n", "import torch\nraise SystemExit(3)\n"), "failed", "SystemExit: 3"),
        (("return True", "return False"), "unavailable", "is_available() returned False"),
        (("return True", "raise BackendUnavailable('no card in the slot')"), "unavailable", "no card in the slot"),
        (("op=", "operator="), "failed", "TypeError"),
        (("int8_vectorwise_dequant", "int8_conv"), "failed", "an operator 'int8_conv' that does not exist"),
        (('device="cpu"', 'device="abacus"'), "failed", "abacus"),
        (("KERNELS", "ROWS"), "failed", "has no attribute 'KERNELS'"),
    ],
)
def test_backend_that_fails_is_recorded_and_isolated(
    tmp_path: Path, change: tuple[str, str], status: str, reason: str
) -> None:
    install(tmp_path, TOY.replace(*change))
    done = run(tmp_path)
    record = record_of(done)
    assert f"| {status} |" in record and reason in record
    assert value_of(done) != 42
    assert not done.stderr


def test_second_backend_with_the_same_row_is_refused_naming_both(tmp_path: Path) -> None:
    install(tmp_path, TOY)
    install(tmp_path, TOY, name="apex")
    records = [line for line in run(tmp_path).stdout.splitlines() if line.startswith(("acme", "apex"))]
    assert sorted(line.split(" | ")[2] for line in records) == ["failed", "loaded"]
    failed = next(line for line in records if "failed" in line)
    assert "registered twice" in failed and "acme:dequant" in failed and "apex:dequant" in failed


def test_forcing_a_backend_that_failed_raises_with_its_reason(tmp_path: Path) -> None:
    install(tmp_path, TOY.replace("API_VERSION = 1", "API_VERSION = 7"))
    done = run(tmp_path, BNB_CORE_FORCE="acme/fast")
    assert done.returncode
    assert "no kernel is named acme/fast" in done.stderr and "backend acme is failed" in done.stderr
    assert "API_VERSION 7" in done.stderr


def test_forcing_a_backend_from_an_entry_point(tmp_path: Path) -> None:
    install(tmp_path, TOY.replace("priority=99", "priority=-1"))
    assert value_of(run(tmp_path, BNB_CORE_FORCE="acme/fast")) == 42
    assert value_of(run(tmp_path, BNB_CORE_FORCE="reference")) != 42


def test_backend_imported_before_the_library_says_what_to_do(tmp_path: Path) -> None:
    install(tmp_path, TOY)
    done = run(tmp_path, "import acme" + PROGRAM)
    assert "acme imports bnb_core while it is being imported itself: import bnb_core first" in record_of(done)


PAGED = (
    TOY
    + """

class Memory:
    def zeros(self, shape, dtype, device):
        return torch.zeros(shape, dtype=dtype, device=device)

    def prefetch(self, tensor):
        print("prefetch", tensor.dtype, tuple(tensor.shape))


def paged_memory():
    return Memory()
"""
)


def test_paged_memory_of_a_backend_is_found(tmp_path: Path) -> None:
    install(tmp_path, PAGED)
    program = """
import torch
from bnb_core import ops_registry, optim
print(type(ops_registry.paged_memory(torch.device("cpu"))).__module__, ops_registry.paged_memory(torch.device("meta")))
p = torch.nn.Parameter(torch.zeros(100_000))
p.grad = torch.ones_like(p)
optim.PagedLion8bit([p]).step()
"""
    done = run(tmp_path, program)
    assert done.stdout.splitlines() == ["acme None", "prefetch torch.uint8 (100000,)"], done.stderr
