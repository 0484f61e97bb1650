"""The kernels for NVIDIA GPUs without one: compiled by nvcc, and run as fibers on the CPU (tests/fibers)."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ctypes import c_void_p
from itertools import islice
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
import torch
from conftest import LEVEL

from bnb_core import ops_registry
from bnb_core.backends import cuda
from bnb_core.backends.cuda.families import Families
from bnb_core.backends.cuda.int8 import Int8
from bnb_core.conformance.attempts import ASPECTS, Subject
from bnb_core.ops_registry.codebooks import dynamic_map, four_bit
from bnb_core.ops_registry.tolerance import differences

pytestmark = pytest.mark.usefixtures("nothing_forced")

ROOT = Path(__file__).parents[1]
OPERATORS = [op for ops in cuda.OPS.values() for op in ops]


def run(*command: str | Path, **environment: str) -> str:
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        list(map(str, command)), env=os.environ | {"PATH": tools} | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a module with the kernels of all families, as fibers."""
    folder = tmp_path_factory.mktemp("fibers")
    run(
        *("cmake", "-S", ROOT, "-B", folder / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
        *("-DBNB_CORE_FIBERS=ON", "-DBNB_CORE_LEVELS=scalar", f"-DBNB_CORE_OUTPUT_DIR={folder}"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    )
    run("cmake", "--build", folder / "build", "--target", "cuda_fibers")
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(folder)
    native = importlib.import_module("cuda_fibers")
    module = ModuleType("cuda_as_fibers")
    module.native, module.library = Families(native), native.__file__
    patch.setitem(sys.modules, module.__name__, module)
    yield module.__name__
    patch.undo()


@pytest.mark.parametrize("op", OPERATORS)
def test_kernels_conform_as_fibers(kernels: str, op: str) -> None:
    """A part of what the conformance run tries: a block takes a millisecond."""
    (row,) = (row for row in cuda.rows(kernels, "cpu", "cpu/fibers") if row.op == op)
    ops_registry.register_kernels([row])
    try:
        row = ops_registry.kernel_named("cpu/fibers", op, "cpu")
        subject, passed = Subject(ops_registry.OPS[op], "cpu", row), 0
        for aspect in ASPECTS.keys() - {"bad input"}:
            for attempt in islice(ASPECTS[aspect](subject), 0, None, 1 if LEVEL == "full" else 4):
                outcome = attempt.outcome()
                assert not outcome.sentences, (aspect, attempt.case, outcome.sentences)
                passed += not outcome.refused
        assert passed > 3
    finally:
        ops_registry.unregister_kernel(row)


FAULTS = """
#include <cstdio>
#include "tests/fibers/fibers.h"
using namespace bnb_core;

// Each thread reads what another warp wrote; with two barriers nobody writes before all have read.
void passed_on(int barriers, int* wrong) {
    __shared__ unsigned found[64];
    for (unsigned round = 0; round < 8; ++round) {
        found[threadIdx.x] = round;
        if (barriers > 0) __syncthreads();
        __shfl_xor_sync(~0u, 0, 1);
        *wrong += found[63 - threadIdx.x] != round;
        if (barriers > 1) __syncthreads();
    }
}

void without_a_lane(int) {
    if (threadIdx.x != 5) __shfl_xor_sync(~0u, 0, 1);
}

int main() {
    for (int barriers = 0; barriers < 3; ++barriers) {
        int wrong = 0;
        launch("", passed_on, 4, 64, nullptr, barriers, &wrong);
        std::printf("%d ", wrong > 0);
    }
    try {
        launch("", without_a_lane, 1, 64, nullptr, 0);
    } catch (const std::exception& error) {
        std::puts(error.what());
    }
}
"""


def test_fibers_show_what_lacks_a_barrier_or_a_lane(tmp_path: Path) -> None:
    source, program = tmp_path / "faults.cpp", tmp_path / "faults"
    source.write_text(FAULTS)
    run("c++", *("-std=c++17", "-O1", "-pthread", "-DBNB_FIBERS", "-I"), ROOT, source, "-o", program)
    assert run(program).split(maxsplit=3) == ["1", "1", "0", "fibers: not all lanes join a shuffle\n"]


def test_cublas_gets_aligned_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    product, places = torch._int_mm, []

    def int_mm(A: torch.Tensor, B: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        places.extend(tensor.data_ptr() % 16 for tensor in (A, B))
        return product(A, B, out=out)

    monkeypatch.setattr(torch, "_int_mm", int_mm)
    numbers = [torch.randint(-128, 128, (rows * 16 + 1,), dtype=torch.int8) for rows in (24, 8)]
    A, B = (memory[1:].view(-1, 16) for memory in numbers)
    assert torch.equal(Int8(ModuleType("no kernels")).int8_mm(A, B), A.int() @ B.int().t())
    assert places == [0, 0]


@pytest.mark.parametrize(
    ("suffix", "dtype"), {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.items()
)
def test_functions_by_their_c_names(kernels: str, suffix: str, dtype: torch.dtype) -> None:
    """As integrations call them, with pointers and a stream, here none."""
    library = ctypes.CDLL(sys.modules[kernels].library)

    def call(name: str, *arguments: torch.Tensor | int | None) -> None:
        values = [c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments]
        getattr(library, f"c{name}")(*values)

    A, code, n, ops = torch.randn(9, 160, dtype=dtype), dynamic_map(), 9 * 160, torch.ops.bnb_core
    absmax, q, out = torch.empty(6), torch.empty(9, 160, dtype=torch.uint8), torch.empty_like(A)
    call(f"quantize_blockwise_{suffix}", code, A, absmax, q, 256, n)
    call(f"dequantize_blockwise_{suffix}", code, q, absmax, out, 256, n, None)
    want = ops.quantize_blockwise(A, code, 256)
    assert torch.equal(q, want[0]) and torch.equal(absmax, want[1])
    assert torch.equal(out, ops.dequantize_blockwise(*want, code, 256, dtype))
    for quant_type in ("nf4", "fp4"):
        packed, absmax, out = torch.empty(n // 2, 1, dtype=torch.uint8), torch.empty(45), torch.empty_like(A)
        call(f"quantize_blockwise_{suffix}_{quant_type}", None, A, absmax, packed, 32, n)
        call(f"dequantize_blockwise_{suffix}_{quant_type}", None, packed, absmax, out, 32, n, None)
        want = ops.quantize_4bit(A, 32, quant_type, torch.uint8)
        assert torch.equal(packed, want[0]) and torch.equal(absmax, want[1])
        assert torch.equal(out, ops.dequantize_4bit(*want, 32, quant_type, A.shape, dtype))
        x, values, row = torch.randn(160, dtype=dtype), four_bit(quant_type), torch.empty(9, dtype=dtype)
        sizes = (9, 80, 9, 32)
        call(f"gemm_4bit_inference_naive_{suffix}", 9, 1, 160, x, packed, absmax, values, row, *sizes, None)
        product = ops.gemm_4bit(x, packed, A.shape, absmax, 32, quant_type)
        assert not differences(row, product, ops_registry.OPS["gemm_4bit"].tolerance)
        before = out.clone()
        out.zero_()
        for blocksize in (0, 1, 48, 8192):
            call(f"dequantize_blockwise_{suffix}_{quant_type}", None, packed, absmax, out, blocksize, n, None)
        assert not out.any() and before.any()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_wheel_with_the_kernels_of_a_gpu_is_found(tmp_path: Path) -> None:
    """Compiled for one GPU; `ci/full` builds for all."""
    options = "-DBNB_CORE_CUDA_ARCHITECTURES=90-real"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    wheel = (*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, ROOT / "wheels" / "cuda")
    run(*wheel, CMAKE_ARGS=options)
    (file,) = tmp_path.glob("bnb_core_cuda-*.whl")
    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--target", site, file)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    found = run(sys.executable, "-m", "bnb_core", PYTHONPATH=path)
    assert "cuda_native" in found and ("torch finds no NVIDIA GPU" in found or torch.cuda.is_available())
    program = "import bnb_core_cuda as wheel, bnb_core_cuda.kernels; print(len(wheel.KERNELS))"
    assert int(run(sys.executable, "-c", program, PYTHONPATH=path)) == len(OPERATORS)


def test_an_old_driver_makes_the_native_kernels_unavailable() -> None:
    built = ModuleType("built_for_cuda_13")
    built.__dict__.update(cuda_version=13000, driver_version=lambda: 12040)
    sentence = cuda.too_new(built)
    assert sentence == "needs a driver for CUDA 13, found one for 12.4"
    assert {row.refuses(()) for row in cuda.rows(unavailable=sentence)} == {sentence}
    built.__dict__.update(driver_version=lambda: 13010)
    assert cuda.too_new(built) is None


def test_native_rows_come_first_where_the_module_was_built() -> None:
    (record,) = (record for record in ops_registry.backends() if record.name == "cuda")
    if not torch.cuda.is_available():
        assert record.status == "unavailable" and "torch finds no" in record.reason
        return
    first = {row.op: row.name for row in reversed(record.kernels)}
    names = {first[op] for op in OPERATORS if op in first}  # not all of them are there in Triton
    assert names == ({"cuda/native"} if cuda.is_built() else {"cuda/triton"})
