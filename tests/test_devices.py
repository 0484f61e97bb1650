"""Devices that this machine does not have, and one that no backend knows: nothing depends on a device's name."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import installed
import pytest
from torch.utils import backend_registration

from bnb_core.backends import triton
from bnb_core.ops_registry import OPS

pytestmark = pytest.mark.usefixtures("nothing_forced")

HERE = Path(__file__).parent
DEVICES = ("cuda", "xpu", "hpu", "mps", "npu")

# -- on FakeTensors ----------------------------------------------------------------------------------------------------


@cache
def found() -> dict[str, Any]:
    """What `absent_devices.py` says, in a process of its own: it gives torch names that stay."""
    done = installed.python(HERE / "absent_devices.py", *DEVICES, path=())
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("check", ["rows", "fakes", "refusals", "layers", "export"])
@pytest.mark.parametrize("device", DEVICES)
def test_without_the_device(device: str, check: str) -> None:
    assert check not in found()[device]["errors"], found()[device]["errors"][check]


PORTABLE = {op for ops in triton.OPS.values() for op in ops}
COMPOSED = {"gemm_4bit", "grouped_gemm_4bit", "embedding_4bit"}
FIRST = {
    "cuda": dict.fromkeys(PORTABLE, "cuda/triton"),
    "xpu": dict.fromkeys(PORTABLE, "xpu/triton") | {"int8_mm": "xpu/torch"},
    "hpu": dict.fromkeys(COMPOSED, "composed") | {"dequantize_4bit": "hpu/gaudi"},
    "mps": {},
    "npu": {},
}


@pytest.mark.parametrize("device", DEVICES)
def test_what_each_operator_would_get(device: str) -> None:
    """As README.md's table says; where nothing is named, the reference."""
    assert found()[device]["first"] == dict.fromkeys(OPS, "reference") | FIRST[device]


def test_declared_limits_hold_for_inputs_without_data() -> None:
    chosen = {device: found()[device]["chosen"] for device in DEVICES}
    assert chosen["hpu"]["dequantize_4bit"] == ["hpu/gaudi", "reference"], "fp4 is not Gaudi's"
    assert chosen["hpu"]["gemm_4bit"] == ["composed"]
    assert chosen["hpu"]["embedding_4bit"] == ["composed", "reference"], "rows that are not whole blocks"
    assert chosen["xpu"]["int8_mm"] == ["xpu/torch", "xpu/triton"], "a long K"
    assert chosen["cuda"]["int8_mm"] == ["cuda/triton"]
    assert chosen["npu"] == chosen["mps"] == {op: ["reference"] for op in chosen["npu"]}


# -- a simulated device that has a name and nothing else ---------------------------------------------------------------

simulated = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="torch < 2.9 has no accelerators in Python",
)
PATH = (HERE, HERE.parent / "examples" / "acme", HERE.parent / "compat")
# The device of `examples/acme` under another name, without its backend.
BEGIN = """
import warnings
import torch, bnb_core, bitsandbytes
from bnb_core import ops_registry
from bnb_core_acme import device
assert bitsandbytes.supported_torch_devices == {"cpu"}
device.NAME = "npu"
device.start()
assert "npu" not in ops_registry.devices()
warnings.simplefilter("ignore", ops_registry.FallbackWarning)
torch.manual_seed(0)
"""


def passes(program: str) -> None:
    done = installed.python("-c", BEGIN + program, path=PATH, BNB_CORE_FALLBACK="warn")
    assert done.returncode == 0, done.stdout + done.stderr


@simulated
def test_operators_run_on_a_device_that_no_backend_knows() -> None:
    passes(
        """
from absent_devices import calls
from bnb_core.conformance.attempts import Subject
from bnb_core.ops_registry.cases import Case, tensors
from torch.utils._pytree import tree_map_only
for op in ops_registry.OPS.values():
    (reference,) = ops_registry.kernels_for(op.name, "npu")
    subject = Subject(op, "npu", reference)
    for case in calls(op):
        here = Case(case.name, tree_map_only(torch.Tensor, lambda tensor: tensor.to("npu"), case.args))
        got, wrong = subject.called(here.args)
        assert {tensor.device.type for tensor in tensors(got)} <= {"npu"}, op.name
        outcome = subject.distance(got, subject.expected(here), wrong)
        assert not outcome.sentences, (op.name, case.name, outcome.sentences)
"""
    )


@simulated
def test_layers_and_optimizers_run_there() -> None:
    passes(
        """
from bnb_core.conformance import end_to_end
names = [f"{layer}, {what}" for layer in ("Linear4bit nf4 nested bfloat16", "Linear8bitLt float16")
         for what in ("forward", "checkpoint", "quantized here", "gradients", "exported")]
scenarios = list(end_to_end("npu", names=[*names, "EmbeddingNF4, forward", "adam, 8-bit state", "lion, 32-bit state"]))
assert len(scenarios) == len(names) + 3
for scenario in scenarios:
    assert not scenario.failure, scenario.failure
    assert {kernel.rpartition(": ")[2] for kernel in scenario.kernels} == {"reference"}, scenario
"""
    )


@simulated
def test_the_drop_in_names_the_devices_that_run_a_quantized_layer() -> None:
    passes(
        """
assert bitsandbytes.supported_torch_devices == {"cpu", "npu"}
for name in bitsandbytes.supported_torch_devices:
    layer = bitsandbytes.nn.Linear4bit(64, 32, device=name).to(name)
    assert layer.weight.quant_state.absmax.device.type == layer(torch.randn(2, 64, device=name)).device.type == name
torch.npu.is_available = lambda: False
assert bitsandbytes.supported_torch_devices == {"cpu"}
"""
    )
