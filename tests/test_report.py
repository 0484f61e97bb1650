"""What `bnb_core.report` says of a model is what the model does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.utils import prune

import bnb_core
from bnb_core import nn, ops_registry
from bnb_core.nn.outliers import OutlierTracer


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


def whys(model: torch.nn.Module) -> dict[str, str | None]:
    return {line.name: line.why for line in bnb_core.report(model).modules}


class Apart(nn.OutlierAwareLinear):
    def quantize_weight(self, w: Tensor, outlier_idx: Tensor) -> Tensor:
        return w

    def forward_with_outliers(self, x: Tensor, outlier_idx: Tensor) -> Tensor:
        return x @ self.weight.T


def test_layers_that_quantize_in_their_own_way_say_it(device: torch.device) -> None:
    apart = Apart(64, 64)
    model = torch.nn.Sequential(
        nn.SwitchBackLinearVectorwise(64, 64), nn.LinearFP8Mixed(64, 64), nn.LinearFP8Global(64, 64), apart
    ).to(device)
    fp8 = "rounded to 8-bit floats in each forward pass, which saves no memory"
    assert whys(model) == {
        "0": "quantized to int8 in each forward pass, until prepare_for_eval()",
        "1": fp8,
        "2": fp8,
        "3": "quantized by its quantize_weight, in a forward pass to come",
    }
    OutlierTracer.get_instance().initialize(model)
    with torch.no_grad():
        model(torch.randn(2, 64, device=device))
    assert whys(model)["3"] == "quantized by its quantize_weight"


def test_a_layer_that_cannot_run_says_why(device: torch.device) -> None:
    model = torch.nn.ModuleDict(
        {
            "four": nn.LinearNF4(64, 8, compute_dtype=torch.float64),
            "eight": nn.Linear8bitLt(64, 8, has_fp16_weights=False),
            "experts": nn.GroupedLinear4bit(2, 8, 9),  # 72 weights a group, in blocks of 64
            "good": nn.LinearNF4(64, 8),
        }
    ).to(device)
    model["eight"].double()
    found = bnb_core.report(model)
    said = {line.name: line.why for line in found.quantized}
    assert set(said) == set(model) and not found.left
    assert [line.name for line in found.modules if line.kernel] == ["good"]
    x = torch.ones(1, 64, device=device)
    calls = {
        "four": lambda: model["four"](x),
        "eight": lambda: model["eight"](x.double()),
        "experts": lambda: model["experts"](x[:, :8], torch.tensor([1, 1], device=device)),
    }
    for name, call in calls.items():
        with pytest.raises(RuntimeError) as error:
            call()
        assert said[name] == str(error.value)
        assert f"cannot run: {said[name]}" in str(found)


@pytest.mark.usefixtures("nothing_forced")
def test_a_forced_kernel_that_refuses_is_said(device: torch.device) -> None:
    def why_not(*args: object) -> str:
        return "it is Sunday"

    kernel = ops_registry.Kernel(op="gemm_4bit", device=device.type, name="toy/lazy", fn=print, why_not=why_not)
    model = nn.LinearNF4(64, 8).to(device)
    ops_registry.register_kernels([kernel])
    try:
        with bnb_core.force("toy/lazy"):
            (line,) = bnb_core.report(model).modules
    finally:
        ops_registry.unregister_kernel(kernel)
    assert (line.kernel, line.why) == (None, "bnb_core::gemm_4bit: the forced kernel toy/lazy refuses: it is Sunday")


class Unread(torch.nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        raise AssertionError("the report runs nothing")


class LowRank(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = torch.nn.Parameter(torch.zeros(2, 64)), torch.nn.Parameter(torch.zeros(8, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.B @ self.A


def test_parametrizations_of_others_are_named_and_counted(device: torch.device) -> None:
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(64, 8))
    adapted, pruned, unread = (torch.nn.Linear(64, 8, bias=False) for _ in range(3))
    register = torch.nn.utils.parametrize.register_parametrization
    register(adapted, "weight", LowRank())
    register(unread, "weight", Unread(), unsafe=True)
    prune.identity(pruned, "weight")
    found = bnb_core.report(torch.nn.Sequential(normed, adapted, pruned, unread).to(device))
    assert [(line.what, line.bytes, line.why) for line in found.left] == [
        ("Linear float32", (8 * 64 + 8 + 8) * 4, "its weight is parametrized by _WeightNorm"),
        ("Linear float32", (8 * 64 + 2 * 64 + 8 * 2) * 4, "its weight is parametrized by LowRank"),
        ("Linear float32", 8 * 64 * 4, "its weight is computed from weight_orig"),
        ("Linear float32", 8 * 64 * 4, "its weight is parametrized by Unread"),
    ]
    assert found.bytes == sum(line.bytes for line in found.left) + 8 * 64 * 4, "the mask of what is pruned"


def test_a_bias_in_4_bits_does_not_hide_the_weight(device: torch.device) -> None:
    layer = torch.nn.Linear(64, 64).to(device)
    nn.parametrize.replace_parameter_4bit(layer, "bias")
    found = bnb_core.report(layer)
    assert [(line.name, line.operator, line.bytes) for line in found.modules] == [
        ("bias", "dequantize_4bit", 64 // 2 + 4),
        ("", None, 64 * 64 * 4),
    ]


def test_on_meta_no_kernel_is_promised() -> None:
    model = torch.nn.Sequential(nn.LinearNF4(64, 8, bias=False), torch.nn.Linear(64, 64)).to("cpu")
    nn.parametrize.replace_parameter_4bit(model[1], "weight")
    size = bnb_core.report(model).bytes
    found = bnb_core.report(model.to("meta"))
    assert [(line.operator, line.kernel) for line in found.quantized] == [
        ("gemm_4bit", None),
        ("dequantize_4bit", None),
    ]
    assert set(whys(model).values()) == {"it is on meta, where nothing is computed"}
    assert found.bytes == size
    waiting = nn.Linear8bitLt(64, 8, has_fp16_weights=False, device="meta")
    assert whys(waiting) == {"": "quantized at its first move to a device"}


def test_tied_weights_count_once(device: torch.device) -> None:
    first, second = nn.LinearNF4(64, 64, bias=False), nn.LinearNF4(64, 64, bias=False)
    second.weight = first.weight
    found = bnb_core.report(torch.nn.Sequential(first, second).to(device))
    assert [line.operator for line in found.modules] == ["gemm_4bit"] * 2
    one = 64 * 64 // 2 + 64 + 4
    assert [(line.bytes, line.shared) for line in found.modules] == [(one, 0), (one, one)]
    assert found.bytes == one
    table, head = torch.nn.Embedding(1000, 1000), torch.nn.Linear(1000, 1000, bias=False)
    head.weight = table.weight
    assert "2 left as they are, 4.00 MB\n" in str(bnb_core.report(torch.nn.Sequential(table, head)))


def test_compiled_modules_are_reported_as_they_were(model: Model, device: torch.device) -> None:
    model.parametrized = torch.nn.Linear(64, 8, device=device)
    nn.parametrize.replace_parameter_4bit(model.parametrized, "weight")
    before = bnb_core.report(model)
    model.parametrized, model.four = torch.compile(model.parametrized), torch.compile(model.four)
    assert set(bnb_core.report(torch.compile(model)).modules) == set(before.modules)


def test_experts(device: torch.device) -> None:
    found = bnb_core.report(nn.Experts4bit(2, 64, 32).to(device))
    scales = 64 + 4  # in 8 bits, and theirs in fp32
    assert [(line.name, line.operator, line.bytes) for line in found.modules] == [
        ("gate_up_proj", "grouped_gemm_4bit", 2 * 64 * 64 // 2 + 2 * scales - 4),
        ("down_proj", "grouped_gemm_4bit", 2 * 64 * 32 // 2 + scales),
    ]
