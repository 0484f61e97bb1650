"""Linear layers that train in int8, compared with float64 mathematics of the same decomposition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import bnb_core

KINDS = {"global": {}, "row-wise": {"vector_wise_quantization": True}, "saved codes": {"mem_efficient": True}}
each_kind = pytest.mark.parametrize("kind", KINDS)


def layer(kind: str, dtype: torch.dtype, device: torch.device) -> bnb_core.nn.SwitchBackLinear:
    torch.manual_seed(0)
    return bnb_core.nn.SwitchBackLinear(48, 32, dtype=dtype, **KINDS[kind]).to(device)


def rounded(W: Tensor, row_wise: bool) -> Tensor:
    """The values of the int8 codes, by float64 mathematics."""
    scale = W.double().abs().amax(1, keepdim=True) if row_wise else W.double().abs().max()
    return torch.round(W.double() * 127 / scale) * scale / 127


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_output_and_gradients(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    module = layer(kind, dtype, device)
    x = torch.randn(2, 5, 48, device=device).to(dtype).requires_grad_()
    gradient = torch.randn(2, 5, 32, device=device).to(dtype)
    out = module(x)
    out.backward(gradient)
    row_wise = module.vector_wise_quantization
    rows, W, g = x.detach().reshape(10, 48), module.weight.detach(), gradient.reshape(10, 32)
    want = rounded(rows, True) @ rounded(W, row_wise).T + module.bias.double()
    grad_x = rounded(g, True) @ rounded(W.T, row_wise).T
    grad_W = g.double().T @ (rounded(rows, True) if module.mem_efficient else rows.double())
    assert out.dtype == x.grad.dtype == module.weight.grad.dtype == dtype
    # A code whose quotient is half a step away differs by a step.
    tolerance = {torch.float32: 2e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    gradients = ((x.grad, grad_x), (module.weight.grad, grad_W), (module.bias.grad, g.double().sum(0)))
    for found, wanted in ((out, want), *gradients):
        error = (found.double().reshape(wanted.shape) - wanted).abs().max() / wanted.abs().max()
        assert error < tolerance


@each_kind
def test_one_graph_for_all_sizes(kind: str, device: torch.device) -> None:
    module = layer(kind, torch.float32, device)
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for rows in (2, 3, 9):
        x = torch.randn(rows, 48, device=device)
        assert torch.equal(compiled(x), module(x))
    assert graphs == 1


def test_it_learns(device: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 48, device=device)
    target = x @ torch.randn(48, 8, device=device)
    model = bnb_core.nn.SwitchBackLinear(48, 8).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        loss = nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


@each_kind
def test_prepared_for_eval_it_computes_the_same_and_saves(kind: str, device: torch.device) -> None:
    module = layer(kind, torch.float32, device)
    x = torch.randn(4, 48, device=device)
    want = module(x)
    fresh = copy.deepcopy(module)
    module.prepare_for_eval()
    assert module.weight.dtype == torch.int8
    assert torch.equal(module(x), want)
    scales = module.weight.SCB.clone()
    assert torch.equal(module.double().half().float().weight.SCB, scales), "a cast keeps the scales"
    module.bias = fresh.bias
    y = x.clone().requires_grad_()
    module(y).sum().backward()
    assert y.grad is not None and module.bias.grad is not None
    assert [p for p in module.parameters() if p.requires_grad] == [module.bias]
    fresh.prepare_for_eval()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(x), want)


def test_prepared_in_inference_mode_it_has_gradients(device: torch.device) -> None:
    module = layer("global", torch.float32, device)
    with torch.inference_mode():
        module.prepare_for_eval()
    module(torch.randn(4, 48, device=device, requires_grad=True)).sum().backward()


@each_kind
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_of_a_prepared_layer_prepares(kind: str, assign: bool, device: torch.device) -> None:
    module, other = layer(kind, torch.float32, device), bnb_core.nn.SwitchBackLinear(48, 32, **KINDS[kind]).to(device)
    module.prepare_for_eval()
    x, before = torch.randn(4, 48, device=device), other.weight
    saved = module.state_dict()
    with pytest.raises(RuntimeError, match=r"SCB is torch.float32 \(31,\), expected torch.float32 \(32,\)"):
        other.load_state_dict(saved | {"SCB": saved["SCB"][1:]}, assign=assign)
    assert other.weight is before and before.requires_grad
    other.load_state_dict(saved, assign=assign)
    assert torch.equal(other(x), module(x))
    assert all(torch.equal(tensor, saved[key]) for key, tensor in other.state_dict().items())


@each_kind
def test_no_rows_and_zeros(kind: str, device: torch.device) -> None:
    module = layer(kind, torch.float32, device)
    module(torch.zeros(0, 48, device=device)).sum().backward()
    assert module.weight.grad is not None and not module.weight.grad.any()
    nn.init.zeros_(module.weight)
    assert torch.equal(module(torch.zeros(1, 48, device=device))[0], module.bias)


def test_names_of_the_kinds() -> None:
    assert bnb_core.nn.SwitchBackLinearVectorwise(8, 8).vector_wise_quantization
    assert not bnb_core.nn.SwitchBackLinearGlobal(8, 8).vector_wise_quantization
