"""Linear layers with operands rounded to 8-bit floats: the values they round to, gradients, and that they learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bnb_core.functional import create_fp8_map, dequantize_blockwise, quantize_blockwise
from bnb_core.nn import LinearFP8Global, LinearFP8Mixed
from bnb_core.nn.linear_fp8 import _rounded

LAYERS = [LinearFP8Mixed, LinearFP8Global]


def nearest(x: Tensor, code: Tensor, blocksize: int) -> Tensor:
    """By counting the boundaries below: of two values that are as near the lower one, as of a boundary in fp32."""
    flat = torch.cat([x.detach().float().reshape(-1), torch.zeros(-x.numel() % blocksize)])
    blocks = flat.view(-1, blocksize)
    scale = blocks.abs().amax(1, keepdim=True)
    boundaries = ((code[1:].double() + code[:-1].double()) / 2).float()
    index = ((blocks / scale).unsqueeze(-1) > boundaries).sum(-1)
    return (code.double()[index] * scale.double()).view(-1)[: x.numel()].view(x.shape)


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_product_and_gradients(cls: Any, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    layer = cls(96, 40).to(device, dtype)
    x = torch.randn(2, 5, 96, device=device, dtype=dtype, requires_grad=True)
    result = layer(x)
    weights = torch.randn_like(result)
    (result * weights).sum().backward()
    W, X, G = layer.weight.detach().cpu(), x.detach().cpu(), weights.cpu()
    forward, backward = layer.fw_code.cpu(), layer.bw_code.cpu()
    assert layer.blocksizes == (128, 64)
    size = {"x": 128, "w": 64, "g": 64} if cls is LinearFP8Mixed else {"x": X.numel(), "w": W.numel(), "g": G.numel()}
    rounded = nearest(X, forward, size["x"]) @ nearest(W.t().contiguous(), forward, size["w"])
    rows = X.double() if cls is LinearFP8Mixed else nearest(X, backward, size["x"])
    expected = {
        "result": (result, rounded + layer.bias.detach().cpu().double()),
        "x": (x.grad, nearest(G, backward, size["g"]) @ W.double()),
        "weight": (layer.weight.grad, G.double().reshape(-1, 40).t() @ rows.reshape(-1, 96)),
        "bias": (layer.bias.grad, G.double().sum((0, 1))),
    }
    tolerance = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    for name, (found, wanted) in expected.items():
        error = (found.detach().cpu().double() - wanted).abs().max() / wanted.abs().max()
        assert error < tolerance, name


@pytest.mark.parametrize("special", [None, 0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_as_a_whole_is_rounded_as_one_block(
    special: float | None, dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(0)
    x, code = torch.randn(300, 41).to(device, dtype), create_fp8_map(True, 5, 2, 8).to(device)
    if special is not None:
        x[:, 3 if special else slice(None)] = special
    one_block = dequantize_blockwise(*quantize_blockwise(x, code, blocksize=x.numel()))
    torch.testing.assert_close(_rounded(x, code, None), one_block, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("features", "size"), [(1, 64), (64, 64), (65, 128), (4096, 4096), (11008, 4096)])
def test_block_sizes(features: int, size: int) -> None:
    assert LinearFP8Mixed(features, 4).blocksizes == (size, 64)


@pytest.mark.parametrize("cls", LAYERS)
def test_it_learns(cls: Any, device: torch.device) -> None:
    torch.manual_seed(0)
    x, target = torch.randn(64, 32, device=device), torch.randn(64, 8, device=device)
    layer = cls(32, 8, bias=False).to(device)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    best = (x @ torch.linalg.lstsq(x, target).solution - target).square().mean()
    assert losses[-1] < best + 0.05 * (losses[0] - best)


@pytest.mark.parametrize("cls", LAYERS)
def test_empty_and_moved(cls: Any, device: torch.device) -> None:
    layer = cls(16, 4).to(device)
    assert layer(torch.empty(0, 16, device=device)).shape == (0, 4)
    assert set(layer.state_dict()) == {"weight", "bias"}
