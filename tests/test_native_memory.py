"""Native kernels stay within their arguments and outputs: each tensor stands beside a page that kills."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import replay
from conftest import LEVEL

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

from bnb_core.backends.cpu.levels import AVAILABLE

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are protected through Linux's libc")
HERE = Path(__file__).parent


def run(*command: object) -> subprocess.CompletedProcess[str]:
    python = (sys.executable, "-X", "faulthandler")
    return subprocess.run([*python, *map(str, command)], cwd=HERE, text=True, capture_output=True, check=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("replay") / "cases.pt"
    replay.record(file, LEVEL)  # type: ignore[arg-type]
    return file


@LINUX
@pytest.mark.parametrize("level", AVAILABLE)
def test_every_case_between_protected_pages(recorded: Path, level: str) -> None:
    done = run("replay.py", "run", recorded, f"cpu/{level}")
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode < 0:
        pytest.fail(f"{signal.Signals(-done.returncode).name} in {last}\n{done.stderr}")
    wrong = [line for line in done.stdout.splitlines() if line.startswith("DIFFERS")]
    assert done.returncode == 0, "\n".join([*wrong, last, done.stderr])
    assert last.endswith(" 0 wrong")


PROBES = """
import ctypes, os, torch
from guarded import Fence, FencedAllocations, GARBAGE

def outcome(address):
    child = os.fork()
    if child == 0:
        ctypes.string_at(address, 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for side in ("end", "start"):
    memory = Fence(side).bytes(8).data_ptr()
    print(side, *(outcome(memory + i) for i in (-1, 0, 7, 8)))
with FencedAllocations(Fence("end")):
    made = [torch.empty(3), torch.empty_like(torch.ones(3)), torch.ones(2).new_empty(3)]
    made.append(torch.empty_strided((2, 3), (1, 2)))
for tensor in made:
    assert set(bytes(tensor.untyped_storage())) == {GARBAGE}
    print("made", outcome(tensor.data_ptr() + tensor.nbytes - 1), outcome(tensor.data_ptr() + tensor.nbytes))
"""


@LINUX
def test_one_byte_too_far_kills() -> None:
    """Before and after eight bytes at either page; after what a kernel allocates, which is full of garbage."""
    done = run("-c", PROBES)
    assert done.returncode == 0, done.stderr
    dies = str(-signal.SIGSEGV)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines == [
        # The first page ends far before what touches the second, and the other way round.
        ["end", "0", "0", "0", dies],
        ["start", dies, "0", "0", "0"],
        *[["made", "0", dies]] * 4,
    ]
