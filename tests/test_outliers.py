"""Outlier dimensions: found in weights and activations, traced through a model, and given to the layers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnb_core import functional as F
from bnb_core.nn import OutlierAwareLinear
from bnb_core.nn.outliers import OutlierTracer, find_outlier_dims


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    OutlierTracer._instance = None


def with_outliers(*shape: int, dims: tuple[int, ...], factor: float = 20.0) -> Tensor:
    x = torch.randn(*shape)
    x[..., list(dims)] *= factor
    return x


@pytest.mark.parametrize("reduction_dim", [0, 1])
def test_dimensions_of_large_spread(reduction_dim: int, device: torch.device) -> None:
    weight = with_outliers(64, 200, dims=(7, 150))
    weight = (weight if reduction_dim == 0 else weight.t()).to(device)
    assert find_outlier_dims(weight, reduction_dim).tolist() == [7, 150]
    assert not find_outlier_dims(torch.randn(64, 200, device=device)).numel()


def test_a_number_of_dimensions(device: torch.device) -> None:
    weight = with_outliers(64, 200, dims=(7, 150)).to(device)
    weight[:, 150] *= 2
    assert find_outlier_dims(weight, topk=2).tolist() == [150, 7]
    chosen = find_outlier_dims(weight, topk=50, rdm=True)
    assert chosen.shape == (50,) and 0 <= chosen.min() and chosen.max() < 200 and chosen.unique().numel() > 10
    with pytest.raises(ValueError, match="rdm needs topk"):
        find_outlier_dims(weight, rdm=True)


class Aware(OutlierAwareLinear):
    """The outlier columns as they are, the others in int8."""

    def quantize_weight(self, w: Tensor, outlier_idx: Tensor) -> Tensor:
        codes, scales, _ = F.int8_vectorwise_quant(w.index_fill(1, outlier_idx, 0.0))
        return F.int8_vectorwise_dequant(codes, scales).index_copy(1, outlier_idx, w[:, outlier_idx])

    def forward_with_outliers(self, x: Tensor, outlier_idx: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def test_layers_get_what_the_tracer_found(device: torch.device) -> None:
    model = nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 40)).to(device)
    with torch.no_grad():
        model[2].weight[:, 11] *= 30
    x = with_outliers(5, 9, 96, dims=(3,)).to(device)
    x[..., 60] = 7.0  # large, without spread
    tracer = OutlierTracer.get_instance()
    assert not tracer.is_initialized()
    tracer.initialize(model)
    assert tracer.is_initialized() and tracer.get_outliers(model[0].weight) is None
    model(x)
    assert tracer.get_outliers(model[0].weight).tolist() == [3, 60]  # type: ignore[union-attr]
    assert tracer.get_outliers(model[2].weight).tolist() == [11]  # type: ignore[union-attr]
    model(x)
    assert not any(layer._forward_pre_hooks for layer in model)

    aware = Aware(128, 40).to(device)
    aware.weight = model[2].weight
    before, h = aware.weight.detach().clone(), torch.randn(4, 128, device=device)
    result = aware(h)
    assert aware.is_quantized and torch.equal(aware.weight[:, 11], before[:, 11])
    assert not torch.equal(aware.weight, before)
    torch.testing.assert_close(result, nn.functional.linear(h, before, aware.bias), rtol=0.05, atol=0.05)
    after = aware.weight.detach().clone()
    assert torch.equal(aware(h), result) and torch.equal(aware.weight, after), "it is quantized once"


def test_layers_that_share_a_weight_hide_none_of_the_others(device: torch.device) -> None:
    first, second, third = model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3))).to(device)
    second.weight = first.weight
    with torch.no_grad():
        third.weight[:, 11] *= 30
    tracer = OutlierTracer.get_instance()
    tracer.initialize(model)
    third(input=second(first(input=torch.randn(5, 64, device=device))))
    assert tracer.get_outliers(first.weight) is not None
    assert tracer.get_outliers(third.weight).tolist() == [11]  # type: ignore[union-attr]
    assert not any(layer._forward_pre_hooks for layer in model)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_that_is_traced_has_the_same_tracer(way: Any) -> None:
    model, tracer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), OutlierTracer.get_instance()
    tracer.initialize(model)
    again = way(model)
    for each in (again, model):
        each(torch.randn(5, 8))
        assert all(tracer.get_outliers(layer.weight) is not None for layer in each)
    assert not any(layer._forward_pre_hooks for layer in model)


@pytest.mark.parametrize("missing", ["quantize_weight", "forward_with_outliers"])
def test_what_a_subclass_has_to_have(missing: str) -> None:
    methods: dict[str, Any] = {name: getattr(Aware, name) for name in ("quantize_weight", "forward_with_outliers")}
    del methods[missing]
    layer = type("Partial", (OutlierAwareLinear,), methods)(8, 4)
    with pytest.raises(RuntimeError, match="outlier dimensions of this layer are not known"):
        layer(torch.randn(2, 8))
    layer.outlier_dim = torch.tensor([1])
    with pytest.raises(NotImplementedError, match=f"Partial has no {missing}"):
        layer(torch.randn(2, 8))


def test_there_is_one_tracer() -> None:
    with pytest.raises(RuntimeError, match="there is one OutlierTracer"):
        OutlierTracer()
    assert OutlierTracer.get_instance() is OutlierTracer.get_instance()
