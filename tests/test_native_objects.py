"""What the built module consists of: instructions above the baseline stand in the functions of a level alone.

A function that is shared between files, as an instance of a template of the standard library, is kept once by the
linker: compiled with a level's flags it would run on CPUs without them. A static initializer runs on every CPU.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)
if platform.machine() not in ("x86_64", "AMD64"):
    pytest.skip("only x86-64 has levels above its baseline", allow_module_level=True)
if not shutil.which("objdump"):
    pytest.skip("objdump (binutils) is not installed", allow_module_level=True)

from bnb_core.backends.cpu import _native

SHOWN = 20
FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^\s+[0-9a-f]+:\t(?:(?:rep|repz|repnz|lock|bnd|notrack|data16|cs) )*(\S+)\s*(.*)$")
# x86-64 begins with SSE2. What came later: VEX and EVEX (`v…`, mask registers), SSE3 to SSE4.2, bit manipulation.
LATER = re.compile(
    r"v(?!er[rw])|k(mov|and|or|xor|shift|test|add|unpck|not)|pshufb|pmul(ld|dq|hrsw)|pma(dd|x)(ub|s[bd]|u[wd])|pmin(s[bd]|u[wd])"
    r"|p(blend|insr[bdq]|extr[bdq]|mov[sz]x|test|abs|align|h?add[dws]w|sign|clmul|cmp(eqq|gtq|[ei]str))|blend|round[sp][sd]"
    r"|dpp[sd]|insertps|extractps|mpsadbw|h(add|sub)p|addsubp|lddqu|mov(ddup|sldup|shdup)|aes|sha(1|256)|crc32|popcnt|movbe"
    r"|andn$|bextr|bls[ir]|blsmsk|bzhi|mulx|pdep|pext$|rorx|s(ar|hl|hr)x"
)


def functions(module: Path) -> Iterator[tuple[str, str, str]]:
    """(demangled function, mnemonic, operands) of each instruction."""
    command = ("objdump", "-d", "-C", "--no-show-raw-insn", "-j", ".text", module)
    listing = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    name = ""
    for line in listing.splitlines():
        if found := FUNCTION.match(line):
            name = found[1]
        elif found := INSTRUCTION.match(line):
            yield name, found[1], found[2]


def misplaced(module: Path, levels: tuple[str, ...]) -> list[str]:
    """Functions with an instruction above the baseline that belong to no level, each with the first of those."""
    found: dict[str, str] = {}
    for name, mnemonic, operands in functions(module):
        if LATER.match(mnemonic) and not any(f"bnb_core::{level}::" in name for level in levels):
            found.setdefault(name, f"{mnemonic} {operands}")
    return [f"{name}: {instruction}" for name, instruction in found.items()]


def symbols(module: Path) -> list[str]:
    return subprocess.run(("nm", module), text=True, capture_output=True, check=False).stdout.splitlines()


def initializers(module: Path) -> list[str]:
    """Functions that run when the module is loaded, by the name of their source file."""
    return [line.partition("_GLOBAL__sub_I_")[2] for line in symbols(module) if "_GLOBAL__sub_I_" in line]


MODULE = Path(_native.__file__)
LEVELS = tuple(level for level in _native.LEVELS if level != "scalar")
with_symbols = pytest.mark.skipif(not symbols(MODULE), reason="the module is stripped of its symbols")


@with_symbols
def test_only_levels_hold_instructions_above_the_baseline() -> None:
    found = misplaced(MODULE, LEVELS)
    assert not found, "\n".join(found[:SHOWN])


@with_symbols
@pytest.mark.parametrize("level", LEVELS)
def test_each_level_is_found_and_uses_its_instructions(level: str) -> None:
    """The search sees what it should: without this level's name its functions are misplaced."""
    others = tuple(other for other in LEVELS if other != level)
    found = misplaced(MODULE, others)
    assert found
    assert all(f"bnb_core::{level}::" in line for line in found)
    register = "zmm" if level.startswith("avx512") else "ymm"
    used = {name for name, _, operands in functions(MODULE) if register in operands}
    assert any(f"bnb_core::{level}::" in name for name in used)


@with_symbols
@pytest.mark.skipif("avx512vnni" not in LEVELS, reason="this build has no level with VNNI")
def test_vnni_stands_in_its_level_alone() -> None:
    users = {name for name, instruction, _ in functions(MODULE) if instruction.startswith("vpdp")}
    assert users
    assert all("bnb_core::avx512vnni::" in name for name in users)


@with_symbols
def test_there_are_no_static_initializers() -> None:
    assert not initializers(MODULE)


SAMPLE = """
#include <vector>
namespace bnb_core { namespace avx2 {
int inside(const int* p) { int s = 0; for (int i = 0; i < 64; ++i) s += p[i]; return s; }
struct Counter { Counter(); } counter;
Counter::Counter() {}
} }
int shared(const float* p, float* q) { for (int i = 0; i < 64; ++i) q[i] = p[i] * 3.0f; return 0; }
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++ to compile the sample")
def test_a_shared_function_and_an_initializer_are_found(tmp_path: Path) -> None:
    source, module = tmp_path / "sample.cpp", tmp_path / "sample.so"
    source.write_text(SAMPLE)
    subprocess.run(("g++", "-O3", "-mavx2", "-shared", "-fPIC", source, "-o", module), check=True)
    (found,) = misplaced(module, ("avx2",))
    assert found.startswith("shared(")
    assert initializers(module) == ["sample.cpp"]
