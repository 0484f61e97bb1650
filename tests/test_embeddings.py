"""The embeddings: values, saving, moving, and the optimizer state that the unquantized ones ask for."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_layers import bits, same_bits
from torch import Tensor

from bnb_core import functional as F
from bnb_core import nn, optim

ROWS, WIDTH = 50, 192
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
QUANTIZED: dict[str, Callable[..., Any]] = {
    "nf4": nn.EmbeddingNF4,
    "fp4": nn.EmbeddingFP4,
    "4bit": functools.partial(nn.Embedding4bit, quant_type="nf4"),
    "nf4 in bf16": functools.partial(nn.EmbeddingNF4, quant_storage=torch.bfloat16),
    "int8": nn.Embedding8bit,
}
over_quantized = pytest.mark.parametrize("make", QUANTIZED.values(), ids=QUANTIZED.keys())


def vectors(layer: Any) -> Tensor:
    """All vectors in fp32."""
    weight = layer.weight
    if isinstance(weight, nn.Int8Params):
        return F.int8_vectorwise_dequant(weight.data, weight.SCB)
    return F.dequantize_4bit(weight.data, weight.quant_state).float()


def indices(device: torch.device, *shape: int) -> Tensor:
    return torch.randint(ROWS, shape, generator=torch.Generator().manual_seed(3)).to(device)


@over_quantized
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (2, 3), (), (0,), (4, 0)])
def test_it_gives_the_vectors(make: Any, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    layer = make(ROWS, WIDTH, dtype=dtype).to(device)
    index = indices(device, *shape)
    found = layer(index)
    assert (found.dtype, found.shape, found.device.type) == (dtype, (*shape, WIDTH), device.type)
    torch.testing.assert_close(
        found.float(), torch.nn.functional.embedding(index, vectors(layer)), rtol=8e-3, atol=1e-6
    )
    assert torch.equal(layer(index.int()), found)


@over_quantized
def test_the_vectors_are_near_those_before(make: Any, device: torch.device) -> None:
    layer = make(ROWS, WIDTH)
    before = layer.weight.data.clone()
    layer.to(device)
    error = (vectors(layer).cpu() - before).abs().mean() / before.abs().mean()
    assert error < (0.01 if isinstance(layer, nn.Embedding8bit) else 0.15)


@pytest.mark.parametrize("width", [1, 100, 63])
def test_blocks_that_straddle_vectors(width: int, device: torch.device) -> None:
    with pytest.warns(UserWarning, match=f"embedding_dim is {width}, no multiple of the block size 64") as said:
        layer = nn.EmbeddingNF4(ROWS, width)
    assert said[0].filename == __file__
    layer.to(device)
    index = indices(device, 9)
    torch.testing.assert_close(layer(index), vectors(layer)[index])


def test_no_warning_for_whole_blocks(recwarn: pytest.WarningsRecorder) -> None:
    nn.EmbeddingNF4(ROWS, 128)
    assert not recwarn.list


@over_quantized
def test_errors(make: Any, device: torch.device) -> None:
    layer = make(ROWS, WIDTH)
    with pytest.raises(RuntimeError, match="not quantized yet: move the layer to its device once"):
        layer(indices(device, 2))
    layer.to(device)
    if device.type == "cpu":
        with pytest.raises(IndexError):
            layer(torch.tensor([ROWS]))


def test_unknown_type() -> None:
    with pytest.raises(ValueError, match="quant_type is 'int4', expected one of nf4, fp4"):
        nn.Embedding4bit(2, 64, quant_type="int4")


@over_quantized
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("way", ["state_dict", "torch.save", "pickle", "deepcopy", "assign"])
def test_saving_and_loading(make: Any, quantized: bool, way: str, device: torch.device) -> None:
    layer = make(ROWS, WIDTH).to(device)
    index = indices(device, 5)
    if way in ("pickle", "deepcopy"):
        again = pickle.loads(pickle.dumps(layer)) if way == "pickle" else copy.deepcopy(layer)
    else:
        saved = layer.state_dict()
        if way == "torch.save":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        again = make(ROWS, WIDTH)
        again = again.to(device) if quantized else again
        again.load_state_dict(saved, assign=way == "assign")
        again.to(device)
    assert same_bits(bits(again), bits(layer))
    assert torch.equal(again(index), layer(index))


@over_quantized
@pytest.mark.parametrize("change", [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double])
def test_casts_keep_the_bits(make: Any, change: Any, device: torch.device) -> None:
    layer = make(ROWS, WIDTH).to(device)
    before, result = bits(layer), layer(indices(device, 4))
    change(layer)
    assert same_bits(bits(layer), before)
    assert torch.equal(layer(indices(device, 4)), result)


# -- embeddings that are trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [nn.Embedding, nn.StableEmbedding])
@pytest.mark.parametrize("way", [lambda layer: layer, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_optimizer_state_of_embeddings_stays_in_32_bits(cls: Any, way: Any, device: torch.device) -> None:
    layer, other = way(cls(100, 64, device=device)), torch.nn.Embedding(100, 64, device=device)
    optimizer = optim.AdamW8bit([*layer.parameters(), *other.parameters()], min_8bit_size=100)
    (layer(indices(device, 8)).sum() + other(indices(device, 8)).sum()).backward()
    optimizer.step()
    assert "qmap1" not in optimizer.state[layer.weight]
    assert "qmap1" in optimizer.state[other.weight]


@pytest.mark.parametrize("cls", [nn.Embedding, nn.StableEmbedding])
@pytest.mark.parametrize("freeze", [True, False])
def test_from_pretrained(cls: Any, freeze: bool, device: torch.device) -> None:
    vectors = torch.randn(10, 64, device=device)
    layer = cls.from_pretrained(vectors, freeze=freeze, padding_idx=3)
    assert layer.weight.requires_grad != freeze and torch.equal(layer.weight, vectors)


@pytest.mark.parametrize("cls", [nn.Embedding, nn.StableEmbedding])
def test_first_vectors(cls: Any) -> None:
    layer = cls(300, 100, padding_idx=7)
    bound = (6 / 400) ** 0.5
    largest = layer.weight.abs().max()
    assert 0.95 * bound < largest <= bound
    assert not layer.weight[7].any()
    assert torch.equal(cls(300, 100, _weight=layer.weight.detach()).weight, layer.weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("whole", [True, False])
def test_stable_embedding_normalizes_in_fp32(dtype: torch.dtype, whole: bool, device: torch.device) -> None:
    layer = nn.StableEmbedding(ROWS, 64, device=device, dtype=None if whole else dtype)
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 2)
        layer.norm.bias.uniform_(-1, 1)
    if whole:
        layer.to(dtype)
    index = indices(device, 2, 5)
    found = layer(index)
    x = layer.weight[index].double()
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + layer.norm.eps).sqrt()
    expected = x * layer.norm.weight.double() + layer.norm.bias.double()
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    found.sum().backward()
    assert layer.weight.grad is not None and layer.norm.weight.grad is not None
