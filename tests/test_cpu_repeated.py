"""Calls that are repeated in C++: like the Python way in results, checks, choices and counts, and without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

import bnb_core
from bnb_core.backends.cpu import _native, repeated
from bnb_core.backends.cpu.levels import AVAILABLE
from bnb_core.ops_registry import (
    OPS,
    Kernel,
    Op,
    force,
    kernel_counts,
    kernels_for,
    register_kernels,
    reset_kernel_counts,
    unregister_kernel,
)
from bnb_core.ops_registry.cases import Case, fresh
from bnb_core.ops_registry.codebooks import dynamic_map

if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    pytest.skip("this torch has no C API for tensors of Python", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("nothing_forced")

ops = torch.ops.bnb_core
FOLDERS = tuple(str(Path(path).resolve()) for path in [*bnb_core.__path__, *bnb_core.backends.__path__])


def overload(op: Op) -> Any:
    return getattr(ops, op.name).default


def kernel(op: Op) -> Any:
    return next(row for row in kernels_for(op.name, "cpu") if row.unavailable is None).function


def renewed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments like these at other addresses, the first of them with other values."""
    first, *rest = fresh(args)
    return first.flip(0) if first.ndim else first.clone(), *rest


def as_list(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple) else [result]


def assert_same(found: Any, expected: Any) -> None:
    for a, b in zip(as_list(found), as_list(expected), strict=True):
        if b is None:
            assert a is None
            continue
        assert (a.dtype, a.shape, a.stride(), a.device) == (b.dtype, b.shape, b.stride(), b.device)
        assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


class PythonCalls:
    """The functions of this package that ran."""

    def __enter__(self) -> list[str]:
        self.names: list[str] = []
        sys.setprofile(self._note)
        return self.names

    def __exit__(self, *exception: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and str(Path(frame.f_code.co_filename).resolve()).startswith(FOLDERS):
            self.names.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name)


RETURNING = sorted(name for name in repeated.OPS if not OPS[name].mutated)
WRITING = sorted(name for name in repeated.OPS if OPS[name].mutated)


def cases(names: list[str]) -> Iterator[Any]:
    for name in names:
        for case in OPS[name].each_case("cpu"):
            yield pytest.param(OPS[name], case, id=f"{name}: {case.name}")


@pytest.mark.parametrize(("op", "case"), list(cases(RETURNING)))
def test_a_repeated_call_gives_what_the_kernel_gives(op: Op, case: Case) -> None:
    call = overload(op)
    call(*case.args)
    args = renewed(case.args)
    for _ in range(2):
        assert_same(call(*args), kernel(op)(*op.complete(args)))


@pytest.mark.parametrize(("op", "case"), list(cases(WRITING)))
def test_a_repeated_step_writes_what_the_kernel_writes(op: Op, case: Case) -> None:
    overload(op)(*fresh(case.args))
    for _ in range(2):
        found, expected = fresh(case.args), fresh(case.args)
        versions = {i: [t._version for t in found[i] or ()] for i in op.mutated}
        assert overload(op)(*found) is None
        kernel(op)(*op.complete(expected))
        for i in op.mutated:
            assert_same(tuple(found[i] or ()), tuple(expected[i] or ()))
            assert all(t._version > before for t, before in zip(found[i] or (), versions[i], strict=True))


def test_numbers_are_those_of_now() -> None:
    """A schedule changes them at every step, which is no reason to learn the call again."""
    op = OPS["optimizer_step_32bit"]
    args = next(case.args for case in op.each_case("cpu") if all(map(is_plain, case.args)))
    overload(op)(*fresh(args))
    for beta1 in (0.25, 0.5):
        found, expected = list(fresh(args)), list(fresh(args))
        for call in (found, expected):
            call[op.parameters.index("beta1")] = beta1
        with PythonCalls() as names:
            overload(op)(*found)
        assert not names
        kernel(op)(*op.complete(expected))
        assert_same(tuple(found[2]), tuple(expected[2]))


def dequantize_args(n: int = 100) -> tuple[Tensor, Tensor, Tensor, int, torch.dtype]:
    q, absmax = ops.quantize_blockwise(torch.randn(n), dynamic_map(), 64)
    return q, absmax, dynamic_map(), 64, torch.float32


def is_plain(argument: Any) -> bool:
    """False for tensors that are strided or empty, and for a list of several dtypes."""
    tensors = argument if isinstance(argument, list) else [argument]
    tensors = [t for t in tensors if isinstance(t, Tensor)]
    return all(t.is_contiguous() and t.numel() for t in tensors) and len({t.dtype for t in tensors}) < 2


@pytest.mark.parametrize("name", sorted(repeated.OPS))
def test_it_runs_no_python(name: str) -> None:
    op = OPS[name]
    call = overload(op)
    args = next(case.args for case in op.each_case("cpu") if all(map(is_plain, case.args)))
    call(*fresh(args))
    others = fresh(args) if op.mutated else renewed(args)
    with PythonCalls() as names:
        call(*others)
    assert not names
    with force("reference"), PythonCalls() as names:
        call(*args)
    assert names


@pytest.mark.parametrize("level", AVAILABLE)
def test_it_obeys_force_and_counts(level: str) -> None:
    args = dequantize_args()
    for forced in (f"cpu/{level}", "reference"):
        reset_kernel_counts()
        with force(forced):
            for _ in range(3):
                ops.dequantize_blockwise(*args)
        assert kernel_counts() == {("dequantize_blockwise", "cpu", forced): 3}


def test_good_calls_let_nothing_bad_pass() -> None:
    q, absmax, code, blocksize, dtype = dequantize_args()
    for _ in range(3):
        ops.dequantize_blockwise(q, absmax, code, blocksize, dtype)
    for bad, error in [
        ((q, absmax, code, 32, dtype), "absmax has 2 elements, but"),
        ((q, absmax.double(), code, blocksize, dtype), "absmax is float64, expected float32"),
        ((q, absmax, code, blocksize, torch.float64), "dtype is float64"),
        ((q[:10], absmax, code, blocksize, dtype), "absmax has 2 elements, but"),
    ]:
        with pytest.raises(RuntimeError, match=error):
            ops.dequantize_blockwise(*bad)


def test_strided_inputs_are_right_after_contiguous_ones() -> None:
    A, code = torch.randn(8, 64), dynamic_map()
    ops.quantize_blockwise(A, code, 64)
    strided = torch.randn(64, 8).t()
    assert_same(ops.quantize_blockwise(strided, code, 64), ops.quantize_blockwise(strided.contiguous(), code, 64))


def test_arguments_that_share_memory_once_need_not_again() -> None:
    A, W = torch.randn(3, 64), torch.randn(64, 64)
    packed, absmax = ops.quantize_4bit(W, 64, "nf4", torch.uint8)
    ops.gemm_4bit(A, packed, (64, 64), absmax, 64, "nf4", absmax)
    bias = torch.randn(64)
    found = ops.gemm_4bit(A, packed, (64, 64), absmax, 64, "nf4", bias)
    assert_same(found, kernel(OPS["gemm_4bit"])(A, packed, (64, 64), absmax, 64, "nf4", bias))


def test_threads_are_those_of_now() -> None:
    asked = []

    def get_num_threads() -> int:
        asked.append(1)
        return 1

    settings, counts = SimpleNamespace(epoch=1), {"cpu/any": 0}
    like_torch: Any = SimpleNamespace(Tensor=Tensor, dtype=torch.dtype, get_num_threads=get_num_threads, _C=torch._C)
    entry = kernel(OPS["dequantize_blockwise"])
    empty = torch._C._dynamo.guards._empty_strided_cpu
    call = _native.without_python(
        entry, lambda *args: (counts, "cpu/any"), settings, like_torch, empty, (), (False,) * 5
    )
    args = dequantize_args()
    expected = entry(*args)
    for before in range(4):
        assert len(asked) == max(0, before - 1)
        assert_same(call(*args), expected)
    assert counts == {"cpu/any": 3}
    settings.epoch = 2
    call(*args)
    assert len(asked) == 3, "a new epoch did not ask the entry"


def test_what_cannot_be_repeated_is_found_out_once() -> None:
    asked: list[int] = []
    settings = SimpleNamespace(epoch=1)
    entry = kernel(OPS["dequantize_blockwise"])
    empty = torch._C._dynamo.guards._empty_strided_cpu
    call = _native.without_python(entry, lambda *args: asked.append(1), settings, torch, empty, (), (False,) * 5)
    args = dequantize_args()
    for _ in range(3):
        assert_same(call(*args), entry(*args))
    assert len(asked) == 1
    settings.epoch = 2
    call(*args)
    assert len(asked) == 2, "a new epoch may have another kernel"


def test_an_older_torch_keeps_the_python_way() -> None:
    def entry() -> None: ...

    like_torch: Any = SimpleNamespace(Tensor=SimpleNamespace(), dtype=torch.dtype, get_num_threads=lambda: 1)
    assert _native.without_python(entry, entry, SimpleNamespace(epoch=1), like_torch, entry, (), ()) is entry


def test_the_result_is_of_the_mode_it_was_made_in() -> None:
    args = dequantize_args()
    for _ in range(2):
        assert not ops.dequantize_blockwise(*args).is_inference()
        with torch.inference_mode():
            assert ops.dequantize_blockwise(*args).is_inference()
        with torch.device("meta"):
            assert ops.dequantize_blockwise(*args).device.type == "cpu"


def test_inputs_with_a_gradient() -> None:
    A = torch.randn(100, requires_grad=True)
    for _ in range(3):
        _, absmax = ops.quantize_4bit(A, 64, "nf4", torch.uint8)
        absmax.add_(1)  # as torch refuses for a view that was made out of its sight
    found = ops.quantize_4bit(A, 64, "nf4", torch.uint8)
    with torch.no_grad():
        assert_same(found, kernel(OPS["quantize_4bit"])(A, 64, "nf4", torch.uint8))


def test_a_result_owns_its_memory() -> None:
    args = dequantize_args()
    first, second = ops.dequantize_blockwise(*args), ops.dequantize_blockwise(*args)
    kept = first.clone()
    second.fill_(7)
    assert torch.equal(first, kept)
    assert first.untyped_storage().resizable()


def test_a_kernel_of_another_backend_may_call_ours_and_do_more() -> None:
    args, ours = dequantize_args(), kernel(OPS["dequantize_blockwise"])

    def doubled(
        A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype, out: Tensor | None = None
    ) -> Any:
        return ours(A, absmax, code, blocksize, dtype).mul_(2)

    row = Kernel(op="dequantize_blockwise", device="cpu", name="cpu/doubled", fn=doubled, priority=1)
    register_kernels([row])
    try:
        for _ in range(3):
            assert torch.equal(ops.dequantize_blockwise(*args), 2 * ours(*args))
    finally:
        unregister_kernel(row)


def test_more_signatures_than_are_kept() -> None:
    code = dynamic_map()
    for _ in range(2):
        for n in range(1, 1100):
            q, absmax = ops.quantize_blockwise(torch.ones(n), code, 64)
            assert q.shape == (n,) and absmax.shape == (-(-n // 64),) and bool((q == 255).all())


def test_calls_from_several_threads() -> None:
    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for n in [64, 100, 128] * 50:
            A = torch.randn(n, generator=generator)
            found = ops.quantize_blockwise(A, dynamic_map(), 64)
            assert_same(found, kernel(OPS["quantize_blockwise"])(A, dynamic_map(), 64))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
