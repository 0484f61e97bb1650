"""Torch's int8 product for Intel GPUs, on the CPU's. No card has run it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._C import DispatchKey

from bnb_core import ops_registry
from bnb_core.backends import triton, xpu
from bnb_core.conformance import conform
from bnb_core.ops_registry import BackendUnavailable, Kernel, kernels_for
from bnb_core.ops_registry.formats import EXACT_K

pytestmark = pytest.mark.usefixtures("nothing_forced")

NAMES = ("xpu/torch", "xpu/torch-parts")
OF_TORCH = [replace(row, unavailable=None, backend=xpu.__name__) for row in xpu.KERNELS if row.name in NAMES]


@pytest.fixture
def on_cpu() -> Iterator[list[Kernel]]:
    rows = [replace(row, device="cpu", name=row.name.replace("xpu", "cpu")) for row in OF_TORCH]
    ops_registry.register_kernels(rows)
    yield rows
    for row in rows:
        ops_registry.unregister_kernel(row)


@pytest.fixture
def on_xpu() -> Iterator[list[Kernel]]:
    """As on a machine without Triton."""
    if "xpu" in ops_registry.devices():
        pytest.skip("its kernels are registered already")
    ops_registry.register_kernels(OF_TORCH)
    yield OF_TORCH
    for row in OF_TORCH:
        ops_registry.unregister_kernel(row)


def rounded(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`torch._int_mm` whose sums are fp32 numbers for a moment."""
    value = (a.double() @ b.double()).float().to(torch.int32)
    return value if out is None else out.copy_(value)


@pytest.mark.parametrize("product", [torch._int_mm, rounded])
def test_it_is_exact_where_sums_beyond_2_24_are_rounded(
    on_cpu: list[Kernel], monkeypatch: pytest.MonkeyPatch, product: object
) -> None:
    monkeypatch.setattr(torch, "_int_mm", product)
    trials = {trial.kernel: trial for trial in conform("cpu", ["int8_mm"], kernels=[row.name for row in on_cpu])}
    assert not [trial.failures for trial in trials.values() if trial.failures]
    assert trials["cpu/torch"].aspects["agreement"].refused == 3, "the cases of a longer K"
    assert not trials["cpu/torch-parts"].aspects["agreement"].refused
    assert all(trial.aspects["opcheck"].passed for trial in trials.values())


def test_one_product_that_rounds_would_not_be() -> None:
    A = torch.full((1, EXACT_K + 1), -128, dtype=torch.int8)
    A[0, 0] = 1
    assert not torch.equal(rounded(A, A.t()), torch.ops.bnb_core.int8_mm(A, A))


def test_a_long_sum_is_refused_with_both_numbers(on_cpu: list[Kernel]) -> None:
    A = torch.ones(2, EXACT_K + 1, dtype=torch.int8)
    sentence = f"needs K of at most {EXACT_K} to be exact in one product, got {EXACT_K + 1}"
    with ops_registry.force("cpu/torch"), pytest.raises(RuntimeError, match=f"cpu/torch refuses: {sentence}"):
        torch.ops.bnb_core.int8_mm(A, A)


@pytest.mark.parametrize(("K", "name"), [(EXACT_K, "xpu/torch"), (3 * EXACT_K + 5, "xpu/torch-parts")])
def test_the_key_of_the_device_runs_it_on_the_memory_of_the_host(on_xpu: list[Kernel], K: int, name: str) -> None:
    A, B = (torch.randint(-128, 128, (rows, K), dtype=torch.int8) for rows in (5, 7))
    op, out = torch.ops.bnb_core.int8_mm, torch.empty(5, 7, dtype=torch.int32)
    ops_registry.reset_kernel_counts()
    want = op(A, B)
    assert torch.equal(op.default._op_dk(DispatchKey.XPU, A, B), want)
    op.out._op_dk(DispatchKey.XPU, A, B, out)
    assert torch.equal(out, want)
    assert ops_registry.kernel_counts()["int8_mm", "xpu", name] == 2


def test_products_with_scales_are_composed_of_it_without_triton(on_xpu: list[Kernel]) -> None:
    for op in ("int8_scaled_mm", "int8_mixed_scaled_mm", "int8_mm_dequant"):
        assert [row.name for row in kernels_for(op, "xpu")] == ["composed", "reference"]


def test_tritons_kernel_stands_between_one_product_and_several() -> None:
    assert [row.name for row in xpu.KERNELS if row.op == "int8_mm"] == ["xpu/torch", "xpu/triton", "xpu/torch-parts"]


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match="torch finds no XPU"):
        xpu.is_available()
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert xpu.is_available() and xpu._without_triton() == "triton is not installed"
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
    assert str(xpu._without_product()).startswith("this torch has no int8 product for XPUs")
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: True)
    assert xpu._without_product() is None
