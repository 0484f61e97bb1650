"""What `bnb_core.report` says of a model is what the model does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import bnb_core
from bnb_core import nn, ops_registry


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 64)
        self.table = nn.EmbeddingNF4(10, 64)
        self.codes = nn.Embedding8bit(10, 64)
        self.four = nn.LinearNF4(64, 96, compute_dtype=torch.bfloat16)
        self.eight = nn.Linear8bitLt(96, 64, has_fp16_weights=False, threshold=6.0)
        self.experts = nn.GroupedLinear4bit(2, 64, 64)
        self.trained = nn.Linear8bitLt(64, 64)
        self.norm = torch.nn.LayerNorm(64)
        self.plain = torch.nn.Linear(64, 64)
        self.gate = torch.nn.Linear(64, 2)
        self.head = torch.nn.Linear(64, 10, bias=False)
        self.head.weight = self.embed.weight
        self.config = SimpleNamespace(quantization_config=SimpleNamespace(llm_int8_skip_modules=["gate"]))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.table(ids) + self.codes(ids)
        x = self.eight(self.four(x))
        return self.head(self.plain(self.norm(self.experts(x, torch.tensor([1, 1], device=x.device)))))


@pytest.fixture
def model(device: torch.device) -> Model:
    torch.manual_seed(0)
    return Model().to(device)


QUANTIZED = {
    "table": "embedding_4bit",
    "codes": "int8_vectorwise_dequant",
    "four": "gemm_4bit",
    "eight": "int8_linear",
    "experts": "grouped_gemm_4bit",
}


def test_kernels_are_those_that_run(model: Model, device: torch.device) -> None:
    ops_registry.reset_kernel_counts()
    found = bnb_core.report(model)
    assert not ops_registry.kernel_counts(), "it runs nothing"
    assert {module.name: module.operator for module in found.quantized} == QUANTIZED
    model(torch.tensor([3], device=device))
    ran = {(operator, kernel) for operator, _, kernel in ops_registry.kernel_counts()}
    assert {(module.operator, module.kernel) for module in found.quantized} <= ran


@pytest.mark.usefixtures("nothing_forced")
def test_forced_kernels_are_said(model: Model) -> None:
    with bnb_core.force("reference"):
        assert {module.kernel for module in bnb_core.report(model).quantized} == {"reference"}


def test_what_is_left_says_why(model: Model) -> None:
    assert {module.name: module.why for module in bnb_core.report(model).left} == {
        "embed": "its weight is shared with another module",
        "head": "its weight is shared with another module",
        "trained": "quantized in each forward pass (has_fp16_weights=True)",
        "plain": "was not replaced by a quantized layer",
        "gate": "named in llm_int8_skip_modules",
    }
    waiting = bnb_core.report(torch.nn.Sequential(nn.LinearNF4(64, 8)))
    assert [module.why for module in waiting.left] == ["quantized at its first move to a device"]


def test_bytes(model: Model) -> None:
    found = bnb_core.report(model)
    by_name = {module.name: module.bytes for module in found.modules}
    # Codes, scales in 8 bits and theirs in fp32, the bias.
    assert by_name["four"] == 96 * 64 // 2 + 96 + 4 + 96 * 4
    assert by_name["eight"] == 96 * 64 + 64 * 4 + 64 * 4
    assert found.bytes == sum(by_name.values()) - by_name["head"] + 2 * 64 * 4, "what is shared counts once"


def test_text_and_calls_of_the_reference(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(bnb_core.report(model))
    assert "LinearNF4 nf4 in blocks of 64, nested, 0.00 MB: gemm_4bit on " in text
    assert text.startswith("5 quantized") and "\n5 left as they are" in text
    ops_registry.reset_kernel_counts()
    plan = ops_registry.choosing.plan_of(ops_registry.OPS["int8_mm"], "npu")
    plan.calls["reference"] = 3
    assert bnb_core.report(model).fallbacks == {("int8_mm", "npu"): 3}
    assert "int8_mm ran 3 times on the reference on npu" in str(bnb_core.report(model))
    ops_registry.reset_kernel_counts()


def test_parametrized_weights_and_prepared_layers(device: torch.device) -> None:
    parametrized, prepared = torch.nn.Linear(64, 8, bias=False), nn.SwitchBackLinear(64, 8, bias=False)
    model = torch.nn.Sequential(parametrized, prepared).to(device)
    nn.parametrize.replace_parameter_4bit(parametrized, "weight")
    prepared.prepare_for_eval()
    found = bnb_core.report(model)
    assert not found.left
    assert [(line.name, line.operator) for line in found.quantized] == [
        ("0.weight", "dequantize_4bit"),
        ("1", "int8_linear"),
    ]
    assert [line.bytes for line in found.quantized] == [8 * 64 // 2 + 8 * 4, 8 * 64 + 8 * 4]
    assert found.bytes == sum(line.bytes for line in found.quantized)
