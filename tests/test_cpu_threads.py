"""Native kernels run on the threads of torch's own OpenMP runtime: as many as torch says, also after a fork."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

from bnb_core.backends.cpu import _native

if not _native.threading().startswith("GOMP"):
    pytest.skip(f"kernels run on one thread here: {_native.threading()}", allow_module_level=True)

A = torch.arange(1 << 20).to(torch.uint8)
ABSMAX = torch.rand(1 << 12, generator=torch.Generator().manual_seed(0))
CODE = torch.linspace(-1, 1, 256)


def work() -> Tensor:
    """A million elements, on as many threads as there are."""
    return torch.ops.bnb_core.dequantize_blockwise(A, ABSMAX, CODE, 256, torch.float32)  # type: ignore[no-any-return]


def numbers_of_a_process(script: str) -> list[int]:
    """Runs `script` in a new process that knows `work`; the numbers that it prints."""
    here = Path(__file__)
    code = f"""
import os, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {str(here.parent)!r})
from {here.stem} import work
{textwrap.dedent(script)}"""
    # Not with the reference forced: torch's own operators hang after a fork.
    environment = {name: value for name, value in os.environ.items() if name != "BNB_CORE_FORCE"}
    command = (sys.executable, "-c", code)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return [int(n) for n in done.stdout.split()]


COUNT = "print(len(os.listdir('/proc/self/task')))\n"
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc/self/task")


@needs_proc
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_as_many_threads_as_torch_says(threads: int) -> None:
    before, after, again = numbers_of_a_process(
        f"torch.set_num_threads({threads})\n{COUNT}work()\n{COUNT}work()\n{COUNT}"
    )
    assert after - before <= threads - 1
    assert again == after
    if threads > 1:
        assert after > before, "a million elements are worth a second thread"


@needs_proc
def test_no_second_openmp_runtime_is_loaded() -> None:
    work()
    maps = Path("/proc/self/maps").read_text()
    runtimes = set(re.findall(r"\S*/lib(?:gomp|iomp5|omp)[-.\w]*", maps))
    assert len(runtimes) == 1, runtimes


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(work())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_python_threads_at_once() -> None:
    expected = work()
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.extend(work() for _ in range(5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(torch.equal(result, expected) for result in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_computes_and_does_not_hang() -> None:
    """libgomp's threads do not survive a fork: a child that asked for them would wait forever."""
    exits = numbers_of_a_process(
        """
        torch.set_num_threads(2)
        expected = work()
        child = os.fork()
        if child == 0:
            found = work()
            torch.set_num_threads(1)  # torch's own operators would hang
            os._exit(0 if torch.equal(found, expected) else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert exits == [0]


class Works(Dataset[tuple[Tensor, int]]):
    """A result for each of two workers, and how many threads came into the worker with it.

    One each, since the queue that carries the first result back starts threads of its own.
    """

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        before = len(os.listdir("/proc/self/task"))
        return work(), len(os.listdir("/proc/self/task")) - before


@needs_proc
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_workers_of_a_data_loader_stay_on_one_thread() -> None:
    expected = work()
    for result, added in DataLoader(Works(), batch_size=None, num_workers=2, multiprocessing_context="fork"):
        assert torch.equal(result, expected)
        assert added == 0
