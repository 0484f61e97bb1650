"""The levels of other CPUs, in emulators: each replays the registry's cases against the results recorded here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import replay
from conftest import LEVEL

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

ROOT = Path(__file__).parents[1]
REPLAY = Path(replay.__file__)
CANNOT = 3  # exit status of the scripts in ci/emulators where something is not installed

full = pytest.mark.skipif(LEVEL != "full", reason="takes minutes: BNB_CORE_TEST_LEVEL=full")


FEW = 5  # cases of an operator


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("replay") / "few.pt"
    replay.record(file, each=FEW)
    return file


@pytest.fixture(scope="module")
def recorded(few: Path) -> Path:
    """On the level full every case."""
    if LEVEL != "full":
        return few
    replay.record(few.with_name("all.pt"))
    return few.with_name("all.pt")


def agrees(level: str, *command: object) -> None:
    """Runs a replay; skips where the emulator is not there."""
    done = subprocess.run([*map(str, command)], cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip().rpartition("\n")[2])
    lines = [line for line in done.stdout.splitlines() if line.startswith(("DIFFERS", f"cpu/{level}: "))]
    assert done.returncode == 0, "\n".join([*lines, done.stdout[-2000:], done.stderr[-2000:]])
    assert lines[-1].endswith(" 0 wrong")
    assert not lines[-1].startswith(f"cpu/{level}: 0 calls")


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="apt-get install qemu-user")
@pytest.mark.parametrize(
    ("cpu", "level", "sides"),
    [
        pytest.param("Nehalem", "scalar", (), id="Nehalem, which has no AVX"),
        # qemu 7.2 reads all of what a masked load may read.
        pytest.param("Haswell-noTSX", "avx2", ("inside",), id="Haswell, which has no AVX-512", marks=full),
    ],
)
def test_older_x86(recorded: Path, cpu: str, level: str, sides: tuple[str, ...]) -> None:
    agrees(level, "qemu-x86_64", "-cpu", cpu, sys.executable, REPLAY, "run", recorded, f"cpu/{level}", *sides)


@full
@pytest.mark.parametrize("level", ["avx512", "avx512vnni"])
def test_avx512(few: Path, level: str) -> None:
    """All of AVX-512 that Tiger Lake has: F, BW, VL, DQ, VBMI and VNNI; not BF16. All cases would take too long."""
    here, there = ("run", few, "cpu/scalar"), ("run", few, f"cpu/{level}")
    agrees(level, ROOT / "ci/emulators/bochs", sys.executable, REPLAY, *here, "--", *there)


@full
def test_aarch64(recorded: Path) -> None:
    agrees("neon", ROOT / "ci/emulators/aarch64", REPLAY, "run", recorded, "cpu/neon")
