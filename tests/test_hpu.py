"""The kernel for Gaudi, over a stand-in for Gaudi's operator that does what is known of it. No card has run it."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from absent_devices import calls
from torch import Tensor
from torch._C import DispatchKey

from bnb_core import ops_registry
from bnb_core.backends import hpu
from bnb_core.backends.hpu import fourbit
from bnb_core.conformance import conform
from bnb_core.conformance.attempts import Subject
from bnb_core.ops_registry.codebooks import four_bit

pytestmark = pytest.mark.usefixtures("nothing_forced")

SCHEMA = (
    "dequantize_nf4(Tensor input, Tensor absmax, int blocksize, *, int[] out_shape, ScalarType out_dtype) -> Tensor"
)
VERSIONS = {"1.21.0.555": False, "1.22.0.740": True, "2.0.0": True}


@pytest.fixture(params=VERSIONS)
def software(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A version of Gaudi's software, whose operator computes on the CPU."""
    version, found = request.param, importlib.metadata.version

    def decode(
        packed: Tensor, absmax: Tensor, blocksize: int, *, out_shape: list[int], out_dtype: torch.dtype
    ) -> Tensor:
        assert packed.dtype == torch.uint8 and packed.ndim == 1
        halves = (packed >> 4, packed & 15) if VERSIONS[version] else (packed & 15, packed >> 4)
        values = four_bit("nf4")[torch.stack(halves, 1).view(-1).int()].to(absmax.dtype)
        scales = absmax.repeat_interleave(blocksize)[: values.numel()]
        return (values[: scales.numel()] * scales).to(out_dtype).view(out_shape)

    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version if name == fourbit.SOFTWARE else found(name)
    )
    library = torch.library.Library("hpu", "FRAGMENT")
    library.define(SCHEMA)
    library.impl("dequantize_nf4", decode, "CPU")
    fourbit.high_half_first.cache_clear()
    yield version
    library._destroy()
    fourbit.high_half_first.cache_clear()


def test_nf4_is_decoded_in_the_order_of_each_version(software: str) -> None:
    row = replace(hpu.KERNELS[0], device="cpu", name="cpu/gaudi", backend=hpu.__name__)
    ops_registry.register_kernels([row])
    try:
        (trial,) = conform("cpu", ["dequantize_4bit"], kernels=["cpu/gaudi"])
    finally:
        ops_registry.unregister_kernel(row)
    assert not trial.failures, trial.failures[:2]
    agreement = trial.aspects["agreement"]
    assert agreement.passed > 20 and agreement.refused > 20, "fp4 is refused"
    assert trial.aspects["opcheck"].passed


@pytest.fixture
def registered() -> Iterator[None]:
    if "hpu" in ops_registry.devices():
        pytest.skip("its kernels are registered already")
    rows = [replace(row, backend=hpu.__name__) for row in hpu.KERNELS]
    ops_registry.register_kernels(rows)
    yield
    for row in rows:
        ops_registry.unregister_kernel(row)


@pytest.mark.parametrize("software", ["1.21.0.555"], indirect=True)
def test_the_key_of_the_device_runs_it_on_the_memory_of_the_host(
    software: str, registered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    op, counts = torch.ops.bnb_core.dequantize_4bit, ops_registry.kernel_counts
    ops_registry.reset_kernel_counts()
    monkeypatch.setattr(ops_registry.choosing, "warned", set())
    for quant_type in ("nf4", "fp4"):
        packed, absmax = torch.ops.bnb_core.quantize_4bit(torch.randn(9, 65), 64, quant_type, torch.uint8)
        args = (packed, absmax, 64, quant_type, (9, 65), torch.bfloat16)
        with ops_registry.fallback("warn"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert torch.equal(op.default._op_dk(DispatchKey.HPU, *args), op(*args))
        sentence = "on hpu runs on the slow reference: hpu/gaudi: quant_type is fp4, this kernel takes nf4"
        assert [sentence in str(warning.message) for warning in caught] == [True] * (quant_type == "fp4")
    ran = {kernel: calls for (_, device, kernel), calls in counts().items() if device == "hpu"}
    assert ran == {"hpu/gaudi": 1, "reference": 1}


@pytest.mark.parametrize("software", ["1.22.0.740"], indirect=True)
@pytest.mark.parametrize("op", ["gemm_4bit", "grouped_gemm_4bit", "embedding_4bit"])
def test_products_and_rows_of_its_values_agree(software: str, op: str) -> None:
    row = replace(hpu.KERNELS[0], device="cpu", name="cpu/gaudi", backend=hpu.__name__, priority=1)
    ops_registry.register_kernels([row])
    ops_registry.reset_kernel_counts()
    try:
        subject = Subject(ops_registry.OPS[op], "cpu", ops_registry.kernel_named("composed", op, "cpu"))
        for case in calls(subject.op):
            if subject.takes(case.args):
                got, wrong = subject.called(case.args)
                outcome = subject.distance(got, subject.expected(case), wrong)
                assert not outcome.sentences, (case.name, outcome.sentences)
    finally:
        ops_registry.unregister_kernel(row)
    assert ops_registry.kernel_counts()["dequantize_4bit", "cpu", "cpu/gaudi"]


def test_layers_are_composed_of_it(registered: None) -> None:
    for op in ("gemm_4bit", "grouped_gemm_4bit", "embedding_4bit"):
        assert [row.name for row in ops_registry.kernels_for(op, "hpu")] == ["composed", "reference"]


def test_it_says_what_is_missing() -> None:
    (record,) = (record for record in ops_registry.backends() if record.name == "hpu")
    if record.status == "unavailable":
        assert record.reason in ("habana_frameworks is not installed", "torch finds no HPU")
    else:
        assert [row.name for row in record.kernels] == ["hpu/gaudi"]
