"""Parameters of any module in 4 bits: values, one dequantization a forward pass, moving, saving, loading."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from test_layer_tracing import ONE_GRAPH
from torch import Tensor

from bnb_core import functional as F
from bnb_core import ops_registry
from bnb_core.nn.parametrize import replace_parameter_4bit, replace_parameter_4bit_prequantized


class Experts(torch.nn.Module):
    """Reads its weight once for each expert."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(4, 24, 40, generator=generator).to(dtype))
        self.bias = torch.nn.Parameter(torch.zeros(4, 24, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x @ self.weight[i].t() + self.bias[i] for i in range(4)])


def quantized(device: torch.device, dtype: torch.dtype = torch.float32, **options: Any) -> Experts:
    module = Experts(dtype).to(device)
    replace_parameter_4bit(module, "weight", **options)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"compress_statistics": True}, {"quant_type": "fp4", "blocksize": 128}], ids=str
)
def test_values(options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    weight = Experts(dtype).to(device).weight.detach()
    module = quantized(device, dtype, **options)
    packed, state = F.quantize_4bit(weight, **{"quant_type": "nf4"} | options)
    assert torch.equal(module.weight, F.dequantize_4bit(packed, state))
    assert (module.weight.shape, module.weight.dtype, module.weight.requires_grad) == (weight.shape, dtype, False)
    assert sum(p.nbytes for p in module.parameters()) < weight.nbytes


def test_a_forward_pass_dequantizes_once(device: torch.device) -> None:
    module, x = quantized(device), torch.ones(3, 40, device=device, requires_grad=True)
    ops_registry.reset_kernel_counts()
    result = module(x)
    counts = {op: n for (op, _, _), n in ops_registry.kernel_counts().items()}
    assert counts["dequantize_4bit"] == 1
    torch.testing.assert_close(result[1], x @ module.weight[1].t())
    result.sum().backward()
    torch.testing.assert_close(x.grad, module.weight.sum((0, 1)).expand(3, 40))


def test_a_forward_pass_dequantizes_once_beside_another_parametrization(device: torch.device) -> None:
    module = Experts().to(device)
    torch.nn.utils.parametrize.register_parametrization(module, "bias", torch.nn.Identity())
    replace_parameter_4bit(module, "weight")
    ops_registry.reset_kernel_counts()
    module(torch.ones(3, 40, device=device))
    assert sum(n for (op, _, _), n in ops_registry.kernel_counts().items() if op == "dequantize_4bit") == 1


@pytest.mark.skipif(not ONE_GRAPH, reason="torch < 2.8 does not trace the layers in one graph")
def test_a_graph_dequantizes_once(device: torch.device) -> None:
    torch.compiler.reset()
    module, graphs = quantized(device), []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    def sample(rows: int) -> Tensor:
        return torch.randn(rows, 40, device=device, requires_grad=True)

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for rows in (2, 5, 9):
        x = sample(rows)
        assert torch.equal(compiled(x), module(x))
    assert len(graphs) == 1
    for strict in (False, True):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "While compiling, we found certain side effects")
            program = torch.export.export(module, (sample(2),), strict=strict)
        graphs.append(program.graph_module)
        x = sample(2)
        assert torch.equal(program.module()(x), module(x))
    for graph in graphs:
        nodes = [n for part in graph.modules() if isinstance(part, torch.fx.GraphModule) for n in part.graph.nodes]
        assert sum("dequantize_4bit" in str(node.target) for node in nodes) == 1
    assert module.weight is not module.weight, "nothing is kept"


def test_a_forward_pass_that_fails_keeps_nothing(device: torch.device) -> None:
    module = quantized(device)
    with pytest.raises(RuntimeError):
        module(torch.ones(3, 7, device=device))
    first = module.weight
    assert module.weight is not first


def test_a_forward_pass_that_is_interrupted_keeps_nothing_that_is_read_later(device: torch.device) -> None:
    module, other = quantized(device), quantized(device)
    with torch.no_grad():
        other.load_state_dict({**other.state_dict(), "weight": other.state_dict()["weight"].flip(0)})

    def interrupt(module: torch.nn.Module, _: Any) -> None:
        assert module.weight is module.weight, "it is kept"
        raise KeyboardInterrupt

    def interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            module(torch.ones(3, 40, device=device))

    hook = module.register_forward_pre_hook(interrupt)
    interrupted()
    module.load_state_dict(other.state_dict())
    assert torch.equal(module.weight, other.weight)
    interrupted()
    hook.remove()
    state = module.parametrizations.weight[0].quant_state  # type: ignore[index, union-attr]
    state.absmax.mul_(2)
    x = torch.ones(3, 40, device=device)
    assert torch.equal(module(x), 2 * other(x))
    assert module.to("meta").weight.is_meta


@pytest.mark.parametrize("options", [{}, {"compress_statistics": True}], ids=str)
@pytest.mark.parametrize("assign", [True, False])
def test_saving_and_loading(options: dict[str, Any], assign: bool, device: torch.device) -> None:
    module = quantized(device, **options)
    saved = module.state_dict()
    assert {"bias", "weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"} <= set(saved)
    assert not any("parametrizations" in key for key in saved)
    other = Experts().to(device)
    with torch.no_grad():
        other.weight.mul_(3)
    replace_parameter_4bit(other, "weight", **options)
    other.load_state_dict(saved, assign=assign)
    assert torch.equal(other.weight, module.weight)
    again = other.state_dict()
    assert set(again) == set(saved) and all(torch.equal(again[key], saved[key]) for key in saved)


def test_prequantized(device: torch.device) -> None:
    saved = quantized(device).state_dict()
    module = Experts().to(device)
    module.weight = torch.nn.Parameter(saved["weight"], requires_grad=False)
    entries = {key.removeprefix("weight."): value for key, value in saved.items() if key.startswith("weight.")}
    replace_parameter_4bit_prequantized(module, "weight", entries, device)
    assert torch.equal(module.weight, quantized(device).weight)


def test_a_cast_leaves_codes_that_are_stored_as_floats(device: torch.device) -> None:
    module = Experts().to(device)
    packed, state = F.quantize_4bit(module.weight, quant_type="nf4", quant_storage=torch.bfloat16)
    module.weight = torch.nn.Parameter(packed, requires_grad=False)
    entries = state.as_dict(packed=True)
    replace_parameter_4bit_prequantized(module, "weight", entries, device)
    expected = F.dequantize_4bit(packed, state)
    assert torch.equal(module.half().float().weight, expected)
    other = quantized(device, compress_statistics=True)
    other.load_state_dict({"bias": module.bias, "weight": packed, **{f"weight.{k}": t for k, t in entries.items()}})
    assert torch.equal(other.weight, expected)


def test_it_moves_and_casts_without_changing_bits(device: torch.device) -> None:
    module = quantized(torch.device("cpu"), compress_statistics=True)
    before = module.weight.clone()
    module.to(device).half().double()
    assert module.weight.device.type == device.type and module.weight.dtype == torch.float32
    assert torch.equal(module.weight.cpu(), before)
    assert torch.equal(copy.deepcopy(module).weight.cpu(), before)
    assert module.to("meta").weight.is_meta


def test_two_parameters_of_a_module(device: torch.device) -> None:
    module = quantized(device)
    replace_parameter_4bit(module, "bias", quant_type="fp4")
    other = quantized(device)
    replace_parameter_4bit(other, "bias", quant_type="fp4")
    other.load_state_dict(module.state_dict())
    ops_registry.reset_kernel_counts()
    assert torch.equal(other(torch.ones(2, 40, device=device)), module(torch.ones(2, 40, device=device)))
    assert sum(n for (op, _, _), n in ops_registry.kernel_counts().items() if op == "dequantize_4bit") == 4


def test_refusals(device: torch.device) -> None:
    with pytest.raises(AttributeError, match="Experts has no parameter 'nothing'"):
        replace_parameter_4bit(Experts(), "nothing")
    with pytest.raises(TypeError, match=r"Experts.forward is a method, expected a Parameter"):
        replace_parameter_4bit(Experts(), "forward")
    module = quantized(device)
    saved = module.state_dict()
    del saved["weight.absmax"]
    with pytest.raises(RuntimeError, match=r"weight.absmax is missing"):
        module.load_state_dict(saved)
    saved = module.state_dict()
    with pytest.raises(RuntimeError, match=r"weight: data has 1919 elements of torch.uint8, but .* needs 1920"):
        module.load_state_dict(saved | {"weight": saved["weight"][1:]})
    short = Experts().to(device)
    short.weight = torch.nn.Parameter(saved["weight"][1:], requires_grad=False)
    entries = {key: value for key, value in saved.items() if key.startswith("weight.")}
    with pytest.raises(ValueError, match=r"data has 1919 elements of torch.uint8, but .* needs 1920"):
        replace_parameter_4bit_prequantized(short, "weight", entries, device)
    with pytest.raises(ValueError, match="quant_type is missing"):
        replace_parameter_4bit_prequantized(Experts(), "weight", {}, device)
