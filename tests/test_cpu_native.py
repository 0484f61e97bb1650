"""How native CPU kernels are reached: names of dtypes, the op, the interpreter's lock."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

from bnb_core.backends.cpu import _native, blockwise
from bnb_core.backends.cpu.levels import AVAILABLE


@pytest.fixture(params=AVAILABLE, autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test runs once for each level of instructions that this CPU has."""
    current.append(request.param)
    yield request.param
    current.pop()


current: list[str] = []


def dequantize_blockwise(*args: object, **kwargs: object) -> Tensor:
    kernels = getattr(blockwise.kernels, current[-1])
    return kernels.dequantize_blockwise(*args, **kwargs)  # type: ignore[no-any-return]


def sample(n: int, blocksize: int, code_size: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * 7919 + blocksize)
    A = torch.randint(0, 256, (n,), dtype=torch.uint8, generator=generator)
    absmax = torch.randn(-(-n // blocksize), generator=generator).abs()
    return A, absmax, torch.randn(code_size, generator=generator)


def test_an_unknown_dtype_is_an_error_that_lists_the_known(level: str) -> None:
    code = torch.zeros(256)
    with pytest.raises(ValueError, match="unknown dtype 'float64', known are float32, float16, bfloat16"):
        getattr(_native, level).dequantize_blockwise(0, 0, code.data_ptr(), 256, 64, 0, "float64", 0, 1)


def test_the_op_runs_this_kernel_on_cpu(level: str) -> None:
    from bnb_core.ops_registry import force, kernel_counts, reset_kernel_counts

    A, absmax, code = sample(1000, 64)
    reset_kernel_counts()
    with force(f"cpu/{level}"):
        found = torch.ops.bnb_core.dequantize_blockwise(A, absmax, code, 64, torch.bfloat16)
    assert kernel_counts() == {("dequantize_blockwise", "cpu", f"cpu/{level}"): 1}
    with force("reference"):
        assert torch.equal(found, torch.ops.bnb_core.dequantize_blockwise(A, absmax, code, 64, torch.bfloat16))


def test_the_gil_is_released() -> None:
    """The main thread runs Python in the first half of another thread's long call, not only once it is over."""
    n = 1 << 25
    A, absmax, code = torch.zeros(n, dtype=torch.uint8), torch.ones(1), torch.ones(256)
    out = torch.zeros(n, dtype=torch.float16)
    call: list[float] = []

    def work() -> None:
        call.append(time.perf_counter())
        dequantize_blockwise(A, absmax, code, n, torch.float16, out=out)
        call.append(time.perf_counter())

    thread = threading.Thread(target=work)
    thread.start()
    ticks = []
    while len(call) < 2:
        ticks.append(time.perf_counter())
    thread.join()
    start, end = call
    assert any(start + 0.1 * (end - start) < tick < (start + end) / 2 for tick in ticks)


THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


# Prints the flags of the memory that a result lies in.
LARGE = """
import re, sys
from pathlib import Path
import torch, bnb_core

n, four_bit = int(sys.argv[1]) << 18, int(sys.argv[2])
absmax, code = torch.ones(-(-n // 4096)), bnb_core.functional.create_dynamic_map()
with bnb_core.force(f"cpu/{sys.argv[3]}"):
    if four_bit:
        A = torch.zeros(n // 2, 1, dtype=torch.uint8)
        found = torch.ops.bnb_core.dequantize_4bit(A, absmax, 4096, "nf4", [n], torch.float32)
    else:
        A = torch.zeros(n, dtype=torch.uint8)
        found = torch.ops.bnb_core.dequantize_blockwise(A, absmax, code, 4096, torch.float32)
middle = found.data_ptr() + found.nbytes // 2
inside = False
for line in Path("/proc/self/smaps").read_text().splitlines():
    if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
        inside = int(bounds[1], 16) <= middle < int(bounds[2], 16)
    elif inside and line.startswith("VmFlags:"):
        print(line)
"""


@pytest.mark.skipif(not THP.is_file() or "[never]" in THP.read_text(), reason="this system has no large pages")
@pytest.mark.parametrize("four_bit", [False, True], ids=["blockwise", "4bit"])
@pytest.mark.parametrize("megabytes", [16, 64])
def test_a_large_result_is_asked_for_on_large_pages(megabytes: int, four_bit: bool) -> None:
    """From 32 MiB on, where memory comes fresh from the system."""
    # In a process of its own: memory that others asked for on large pages stays so, and can be given again.
    arguments = (str(megabytes), str(int(four_bit)), current[-1])
    done = subprocess.run([sys.executable, "-c", LARGE, *arguments], capture_output=True, text=True, check=True)
    assert ("hg" in done.stdout.split()) == (megabytes >= 32)


def test_a_native_function_refuses_other_arguments(level: str) -> None:
    function = getattr(_native, level).int8_vectorwise_dequant
    for args, error, message in [
        ((0, 0, 0), TypeError, r"int8_vectorwise_dequant\(\) takes 6 arguments, 3 were given"),
        ((0, 0, "0", 0, 0, 1), TypeError, "int"),
        ((0, 0, 2**70, 0, 0, 1), OverflowError, "int"),
        ((0, 0, 0, 0, 0, 2**40), OverflowError, "too large"),
        ((-1, 0, 0, 0, 0, 1), OverflowError, "int"),
    ]:
        with pytest.raises(error, match=message):
            function(*args)
