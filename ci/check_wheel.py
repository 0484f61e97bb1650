"""check_wheel.py WHEEL [PLATFORM]: installs a wheel in a virtual environment of its own and runs its native kernels.

Its tag is looked at (PLATFORM), which libraries its modules need, how many OpenMP runtimes are loaded beside torch,
every level of the kernels, the same on an older CPU where qemu is installed, then the tests of the native operators.
torch and the other requirements are those of the interpreter that runs this; its bnb_core is not found. Linux only.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What a module may need from elsewhere: of the C library's package alone. Not libgomp: torch brings its own copy.
SYSTEM = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
OLDER = "Nehalem"  # an x86-64 without AVX
TESTS = ("test_ops.py", "test_native_*.py", "test_cpu_*.py")
SMOKE = """
import sys, torch, bnb_core
from bnb_core.backends.cpu import _native
from bnb_core.ops_registry import force
for module in (bnb_core, _native):
    assert module.__file__.startswith(sys.prefix), module.__file__
x = torch.linspace(-3, 3, 33 * 130).view(33, 130)
with force("reference"):
    expected = torch.ops.bnb_core.quantize_4bit(x, 64, "nf4", torch.uint8)
levels = [level for level, missing in _native.LEVELS.items() if not missing]
flags = next((line.split() for line in open("/proc/cpuinfo") if line.startswith("flags")), [])
assert "emulated" in sys.argv or ("avx2" in levels) == ({"avx2", "fma", "f16c"} <= set(flags)), _native.LEVELS
assert "emulated" in sys.argv or ("avx512" in levels) == ("avx512dq" in flags and "avx512vl" in flags), _native.LEVELS
for level in levels:
    with force(f"cpu/{level}"):
        found = torch.ops.bnb_core.quantize_4bit(x, 64, "nf4", torch.uint8)
        assert all(map(torch.equal, found, expected)), level
        torch.ops.bnb_core.dequantize_4bit(*found, 64, "nf4", x.shape, torch.float32)
layer = bnb_core.nn.LinearNF4(64, 32, compute_dtype=torch.float32).to("cpu")
assert layer(torch.randn(2, 64)).shape == (2, 32)
maps = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if line.count("/")}
runtimes = [file for file in maps if "omp" in file.rpartition("/")[2]]
assert len(runtimes) <= 1, runtimes
print("levels", *levels, "threads", _native.threading())
"""


def needed(module: Path) -> set[str]:
    """The libraries that a module names."""
    dynamic = subprocess.run(("readelf", "-d", module), text=True, capture_output=True, check=True).stdout
    return {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}


def install(wheel: Path, folder: Path) -> Path:
    """A virtual environment with the wheel; returns its interpreter."""
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    subprocess.run((*pip, "install", "--quiet", "--no-deps", "--no-index", wheel), check=True)
    # The .pth files of a folder that is named in one are not run: an editable install there is not found.
    (site,) = folder.glob("lib/python*/site-packages")
    torch = importlib.util.find_spec("torch")
    assert torch is not None and torch.origin is not None, "torch is not installed"
    (site / "requirements.pth").write_text(f"{Path(torch.origin).parents[1]}\n")
    return python


def main(wheel: Path, platform: str | None = None) -> None:
    if platform and platform not in wheel.name:
        sys.exit(f"{wheel.name} has not the tag {platform}")
    if copied := [name for name in zipfile.ZipFile(wheel).namelist() if ".libs/" in name]:
        sys.exit(f"libraries were copied into the wheel: {copied}")
    with tempfile.TemporaryDirectory() as folder:
        python = install(wheel, Path(folder, "venv"))
        for module in Path(folder).rglob("_native.*.so"):
            if foreign := needed(module) - SYSTEM:
                sys.exit(f"{module.name} needs {sorted(foreign)}")
        smoke = (python, "-c", SMOKE)
        subprocess.run(smoke, cwd=folder, check=True)
        if "x86_64" not in wheel.name or not shutil.which("qemu-x86_64"):
            print("check_wheel.py: an older CPU is not tried; that needs an x86-64 wheel and qemu-user")
        else:
            older = ("qemu-x86_64", "-cpu", OLDER, *smoke, "emulated")
            said = subprocess.run(older, cwd=folder, check=True, capture_output=True)
            print(OLDER, said.stdout.decode(), end="")
            assert b"levels scalar threads" in said.stdout, said.stdout
        # Not the sources of this folder, where `python -m` and pytest's own setting would look.
        tests = [file for pattern in TESTS for file in sorted(ROOT.glob(f"tests/{pattern}"))]
        pytest = (python, "-m", "pytest", "-q", "-o", "pythonpath=", *tests)
        paths = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT / "tests")}
        subprocess.run(pytest, cwd=ROOT, env=os.environ | paths, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *sys.argv[2:])
