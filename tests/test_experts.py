"""Layers for groups of rows, and the experts of a mixture, in 4 bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_layer_tracing import needs_one_graph
from torch import Tensor
from torch.nn.functional import silu

from bnb_core import functional as F
from bnb_core import nn, ops_registry

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 2e-2}
E, HIDDEN, INNER = 5, 48, 32


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    found, expected = found.detach().double(), expected.detach().double()
    assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def values(layer: nn.GroupedLinear4bit) -> Tensor:
    return F.dequantize_4bit(layer.weight.data, layer.quant_state).double()


def routed(rows: int, chosen: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Rows, experts of which the last but one is never chosen, and weights."""
    index = torch.stack([torch.randperm(E - 1)[:chosen] for _ in range(rows)])
    index[index == E - 2] = E - 1
    x = torch.randn(rows, HIDDEN).to(device, dtype).requires_grad_()
    return x, index.to(device), torch.rand(rows, chosen).to(device, dtype).requires_grad_()


def expected_of(experts: nn.Experts4bit, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """One row and one expert at a time, in float64."""
    up, down = values(experts.gate_up_proj), values(experts.down_proj)
    results = []
    for row, chosen, share in zip(x.double(), index.tolist(), weights.double(), strict=True):
        parts = [torch.zeros(HIDDEN, dtype=torch.float64, device=x.device)]
        for expert, weight in zip(chosen, share, strict=True):
            if 0 <= expert < E:
                biases = [layer.bias for layer in (experts.gate_up_proj, experts.down_proj)]
                first, second = (0 if bias is None else bias[expert].double() for bias in biases)
                gate, linear = (up[expert] @ row + first).chunk(2)
                parts.append(weight * (down[expert] @ (silu(gate) * linear) + second))
        results.append(torch.stack(parts).sum(0))
    return torch.stack(results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "quantizing", [{}, {"compress_statistics": False, "bias": True}, {"quant_type": "fp4"}], ids=str
)
def test_outputs_and_gradients(quantizing: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    experts = nn.Experts4bit(E, HIDDEN, INNER, **quantizing).to(device)
    args = routed(9, 2, device, dtype)
    found, expected = experts(*args), expected_of(experts, *args)
    assert_close(found, expected, dtype)
    wanted = [args[0], args[2], *(p for p in experts.parameters() if p.requires_grad)]
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, wanted, direction.to(dtype))
    for p, gradient, exact in zip(wanted, gradients, torch.autograd.grad(expected, wanted, direction), strict=True):
        scale = exact.abs().max().double()
        assert (gradient.double() - exact.double()).abs().max() <= 4 * TOLERANCE[dtype] * scale, p.shape


def test_one_dispatch_for_all_experts(device: torch.device) -> None:
    experts = nn.Experts4bit(E, HIDDEN, INNER).to(device)
    x, index, weights = routed(9, 2, device)
    ops_registry.reset_kernel_counts()
    experts(x, index, weights).sum().backward()
    assert {op: n for (op, _, _), n in ops_registry.kernel_counts().items()} == {"grouped_gemm_4bit": 4}


def test_second_derivatives(device: torch.device) -> None:
    experts = nn.Experts4bit(E, HIDDEN, INNER).to(device)
    x, index, weights = routed(9, 2, device)
    second = []
    for y in (experts(x, index, weights), expected_of(experts, x, index, weights)):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(gradient.square().sum(), (x, weights)))
    for found, expected in zip(*second, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_gradient_in_fp32_is_computed_as_such(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Also where the process allows less, as it then does on processors with products in bf16."""
    matmul, mm = getattr(torch.backends.mkldnn, "matmul", None), torch.mm  # older torch has one setting for all
    settings: set[str] = set()

    def watched(*args: Any, **options: Any) -> Tensor:
        settings.add(getattr(matmul, "fp32_precision", None) or torch.get_float32_matmul_precision())
        return mm(*args, **options)

    layer = nn.GroupedLinear4bit(2, 64, 3).to(device)
    x, ends = torch.ones(4, 64, device=device, requires_grad=True), torch.tensor([1, 4], device=device)
    y = layer(x, ends).sum()
    monkeypatch.setattr(torch, "mm", watched)
    torch.set_float32_matmul_precision("medium")
    try:
        y.backward()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert settings <= {"ieee", "none", "highest"}


@pytest.mark.filterwarnings("error")
def test_ends_of_any_strides(device: torch.device) -> None:
    layer = nn.GroupedLinear4bit(2, 64, 3).to(device)
    ends = torch.tensor([[1, 9], [3, 9]], device=device)[:, 0]
    layer(torch.ones(4, 64, device=device), ends).sum().backward()
    assert layer.bias.grad is not None and layer.bias.grad.tolist() == [[1.0] * 3, [2.0] * 3]


def test_rows_without_experts(device: torch.device) -> None:
    experts = nn.Experts4bit(E, HIDDEN, INNER, bias=True).to(device)
    x, index, weights = routed(6, 2, device)
    index[1], index[4, 0] = torch.tensor([E, -1]), E
    found = experts(x, index, weights)
    assert_close(found, expected_of(experts, x, index, weights), torch.float32)
    assert not found[1].any()
    found.sum().backward()
    assert x.grad is not None and not x.grad[1].any() and x.grad[4].any()
    nothing = experts(*(tensor[:0] for tensor in (x, index, weights)))
    assert nothing.shape == (0, HIDDEN)


def test_quantizes_the_weights_it_was_given(device: torch.device) -> None:
    experts = nn.Experts4bit(E, HIDDEN, INNER)
    shapes = {"gate_up_proj": (E, 2 * INNER, HIDDEN), "down_proj": (E, HIDDEN, INNER)}
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    experts.load_state_dict(weights)
    experts.to(device)
    for name in shapes:
        packed, state = F.quantize_4bit(weights[f"{name}.weight"].to(device), None, None, 64, True, "nf4")
        layer = getattr(experts, name)
        assert torch.equal(layer.weight.data, packed) and layer.quant_state == state


def test_moves_copies_and_checkpoints(device: torch.device) -> None:
    experts = nn.Experts4bit(E, HIDDEN, INNER, quant_storage=torch.bfloat16, bias=True)
    args = routed(5, 2, device)
    with pytest.raises(RuntimeError, match="not quantized yet"):
        experts(*args)
    expected = experts.to(device)(*args)
    state = experts.state_dict()
    assert "gate_up_proj.weight.quant_state.bitsandbytes__nf4" in state
    other = nn.Experts4bit(E, HIDDEN, INNER, quant_storage=torch.bfloat16, bias=True)
    other.load_state_dict(state)
    for module in (other.to(device), copy.deepcopy(experts), experts.half().float()):
        assert module.gate_up_proj.quant_state == experts.gate_up_proj.quant_state
    for module in (other, copy.deepcopy(other)):
        assert torch.equal(module(*args), expected)


def test_its_weights_are_those_of_a_parametrized_module(device: torch.device) -> None:
    """A checkpoint of `nn.parametrize` goes into the layer, under the weight's name."""
    module = torch.nn.Module()
    module.gate_up_proj = torch.nn.Parameter(torch.randn(E, 2 * INNER, HIDDEN, device=device))
    nn.parametrize.replace_parameter_4bit(module, "gate_up_proj")
    layer = nn.GroupedLinear4bit(E, HIDDEN, 2 * INNER, bias=False, device=device)
    layer.load_state_dict({key.replace("gate_up_proj", "weight"): t for key, t in module.state_dict().items()})
    assert torch.equal(values(layer), module.gate_up_proj.double())


def test_refusals(device: torch.device) -> None:
    layer = nn.GroupedLinear4bit(2, 5, 3).to(device)
    with pytest.raises(RuntimeError, match=r"expected weights of whole blocks: 3 \* 5 divided by 64"):
        layer(torch.ones(2, 5, device=device), torch.tensor([1, 2], device=device))
    layer = nn.GroupedLinear4bit(2, 64, 3).to(device)
    for ends in ([2, 1], [1, 3], [-1, 2]):
        with pytest.raises(IndexError, match=r"ends is \[.*\], expected ascending ones up to 2, the rows of A"):
            layer(torch.ones(2, 64, device=device), torch.tensor(ends, device=device))


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_sizes_that_do_not_belong_together(wrong: int, device: torch.device) -> None:
    experts = nn.Experts4bit(E, HIDDEN, INNER).to(device)
    args = list(routed(6, 2, device))
    args[wrong] = args[wrong][:, :1] if wrong == 2 else args[wrong][:3]
    with pytest.raises(ValueError, match=r"hidden_states has shape .*, expected \[T, hidden_size\], \[T, k\] and"):
        experts(*args)


@needs_one_graph
def test_compiles_into_one_graph(device: torch.device) -> None:
    experts = nn.Experts4bit(E, HIDDEN, INNER, bias=True).to(device)
    compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
    for rows in (7, 4):
        x, index, weights = routed(rows, 2, device)
        found, expected = compiled(x, index, weights), experts(x, index, weights)
        torch.testing.assert_close(found, expected)
        gradients = (torch.autograd.grad(y.sum(), (x, weights)) for y in (found, expected))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)
