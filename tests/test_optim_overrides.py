"""GlobalOptimManager: other hyperparameters for single parameters, found again after `.to()`, forgotten with them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from optimizers import parameters, set_gradients, train
from torch import nn

from bnb_core import optim
from bnb_core.optim import GlobalOptimManager


@pytest.fixture
def manager() -> Iterator[GlobalOptimManager]:
    manager = GlobalOptimManager.get_instance()
    manager.initialize()
    yield manager
    manager.initialize()


def test_there_is_one(manager: GlobalOptimManager) -> None:
    assert GlobalOptimManager.get_instance() is manager
    with pytest.raises(RuntimeError, match=r"call GlobalOptimManager.get_instance\(\)"):
        GlobalOptimManager()


@pytest.mark.parametrize("given", ["key", "dict", "list"])
def test_bits_of_one_parameter(given: str, manager: GlobalOptimManager, device: torch.device) -> None:
    params = parameters(device)
    if given == "key":
        manager.override_config(params[0], "optim_bits", 32)
    elif given == "dict":
        manager.override_config(params[0], key_value_dict={"optim_bits": 32})
    else:
        manager.override_config([params[0], params[1]], "optim_bits", 32)
    optimizer = optim.AdamW8bit(params, min_8bit_size=100)
    train(params, optimizer, 0, 2)
    assert "qmap1" not in optimizer.state[params[0]]
    assert "qmap1" in optimizer.state[params[2]]
    again = optim.AdamW8bit(params, min_8bit_size=100)
    again.load_state_dict(optimizer.state_dict())
    assert "qmap1" not in again.state[params[0]] and "qmap1" in again.state[params[2]]


def test_hyperparameters_of_one_parameter(manager: GlobalOptimManager, device: torch.device) -> None:
    """As if it were a group of its own; the later word counts; others keep theirs."""
    together, apart = parameters(device), parameters(device)
    manager.override_config(together[0], key_value_dict={"lr": 0.5, "betas": (0.5, 0.9), "weight_decay": 0.3})
    manager.override_config(together[0], "lr", 0.1)
    train(together, optim.Adam(together, lr=1e-3), 0, 5)
    group = {"params": apart[:1], "lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.3}
    train(apart, optim.Adam([group, {"params": apart[1:]}], lr=1e-3), 0, 5)
    for p, q in zip(together, apart, strict=True):
        assert torch.equal(p, q)


def test_override_during_training(manager: GlobalOptimManager, device: torch.device) -> None:
    params = parameters(device)
    optimizer = optim.SGD(params, lr=0.1)
    train(params, optimizer, 0, 1)
    before = [p.detach().clone() for p in params]
    manager.override_config(params[1], "lr", 0.0)
    train(params, optimizer, 1, 2)
    assert [torch.equal(p, q) for p, q in zip(params, before, strict=True)] == [False, True, False]


@pytest.mark.parametrize("when", ["before", "after"])
def test_parameters_that_to_replaces(when: str, manager: GlobalOptimManager, device: torch.device) -> None:
    old = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 90))
    manager.register_parameters(old.parameters())
    if when == "before":
        manager.override_config(old[1].weight, "optim_bits", 32)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        weight = weakref.ref(old[1].weight)
        model = old.to(device, torch.bfloat16)
        gc.collect()
        assert weight() is None, "the parameter is another one"
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    if when == "after":
        manager.override_config(model[1].weight, "optim_bits", 32)
    params = list(model.parameters())
    optimizer = optim.AdamW8bit(params, min_8bit_size=100)
    set_gradients(params, 0)
    optimizer.step()
    assert ["qmap1" in optimizer.state[p] for p in params] == [True, False, False, False]


def test_place_of_another_model_is_not_taken(manager: GlobalOptimManager, device: torch.device) -> None:
    model, other = nn.Linear(100, 100, device=device), nn.Linear(100, 100, device=device)
    manager.register_parameters([{"params": model.parameters()}])
    manager.override_config(model.weight, "optim_bits", 32)
    params = list(other.parameters())
    optimizer = optim.AdamW8bit(params)
    set_gradients(params, 0)
    optimizer.step()
    assert "qmap1" in optimizer.state[other.weight]


def test_module_override(manager: GlobalOptimManager, device: torch.device) -> None:
    """It holds for the parameter that the module has when it is updated, and yields to one of the parameter."""
    embedding, other = nn.Embedding(100, 64), nn.Embedding(100, 64)
    for module in (embedding, other):
        manager.register_module_override(module, "weight", {"optim_bits": 32})
    embedding.weight = nn.Parameter(torch.randn(200, 64))
    manager.override_config(other.weight, "optim_bits", 8)
    params = [embedding.to(device).weight, other.to(device).weight]
    optimizer = optim.AdamW8bit(params)
    set_gradients(params, 0)
    optimizer.step()
    assert ["qmap1" in optimizer.state[p] for p in params] == [False, True]


def test_nothing_is_kept_alive(manager: GlobalOptimManager) -> None:
    module = nn.Linear(4, 4)
    manager.register_parameters(module.parameters())
    manager.override_config(module.weight, "lr", 0.1)
    manager.register_module_override(module, "bias", {"lr": 0.1})
    references = [weakref.ref(module), weakref.ref(module.weight)]
    del module
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"key": "is_sparse", "value": True}, "is_sparse cannot be overridden; what can is lr, betas, eps"),
        ({"key_value_dict": {"lr": 1, "momentum": 0.9}}, "momentum cannot be overridden"),
        ({}, "give either key and value, or key_value_dict"),
        ({"key": "lr", "value": 1, "key_value_dict": {"eps": 1}}, "give either key and value, or key_value_dict"),
    ],
)
def test_what_cannot_be_overridden(arguments: dict[str, Any], error: str, manager: GlobalOptimManager) -> None:
    with pytest.raises(ValueError, match=error):
        manager.override_config(nn.Parameter(torch.ones(3)), **arguments)


def test_overriding_with_a_value_out_of_range(manager: GlobalOptimManager, device: torch.device) -> None:
    params = parameters(device)
    manager.override_config(params[1], "optim_bits", 4)
    optimizer = optim.AdamW8bit(params)
    set_gradients(params, 0)
    with pytest.raises(ValueError, match="optim_bits is 4, expected 8 or 32"):
        optimizer.step()


def test_learning_rates_that_print_alike(manager: GlobalOptimManager, device: torch.device) -> None:
    params = [torch.nn.Parameter(torch.zeros(4, device=device)) for _ in range(2)]
    for p, lr in zip(params, (0.10001, 0.10004), strict=True):
        manager.override_config(p, "lr", torch.tensor(lr, device=device))
        p.grad = torch.ones_like(p)
    optim.SGD(params, lr=1.0).step()
    torch.testing.assert_close([-p[0].item() for p in params], [0.10001, 0.10004], rtol=1e-6, atol=0)


def test_a_model_after_another_one(manager: GlobalOptimManager, device: torch.device) -> None:
    """What was said of a model that is gone is not for the next one that registers."""
    for lr in (0.5, None):
        params = [torch.nn.Parameter(torch.zeros(100, 100, device=device))]
        manager.register_parameters(params)
        if lr:
            manager.override_config(params[0], "lr", lr)
        params[0].grad = torch.ones_like(params[0])
        optim.SGD(params, lr=0.125).step()
        assert params[0][0, 0] == -(lr or 0.125)
        del params
        gc.collect()


def test_parameters_stay_in_the_groups_that_are_registered(manager: GlobalOptimManager) -> None:
    model = nn.Linear(4, 4)
    groups = [{"params": model.parameters()}, {"params": dict(nn.Linear(3, 3).named_parameters()).items()}]
    manager.register_parameters(groups)
    optimizer = optim.Adam(groups[:1])
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, model.parameters()))


def test_a_name_that_an_optimizer_does_not_have(manager: GlobalOptimManager, device: torch.device) -> None:
    params = parameters(device)
    manager.override_config(params[0], "alpha", 0.5)
    set_gradients(params, 0)
    with pytest.raises(ValueError, match="alpha is overridden, which RMSprop does not have"):
        optim.RMSprop(params).step()


def test_compiled_step_sees_an_override(manager: GlobalOptimManager, device: torch.device) -> None:
    torch._dynamo.reset()
    params = parameters(device)
    optimizer = optim.SGD(params, lr=0.1)
    compiled = torch.compile(optimizer.step, backend="eager")
    for step in range(3):
        set_gradients(params, step)
        before = [p.detach().clone() for p in params]
        if step == 2:
            manager.override_config(params[1], "lr", 0.0)
        compiled()
        unmoved = [torch.equal(p, q) for p, q in zip(params, before, strict=True)]
        assert unmoved == [False, step == 2, False]


def test_what_is_no_tensor_and_no_module(manager: GlobalOptimManager) -> None:
    for wrong in ("weight", [nn.Linear(2, 2)]):
        with pytest.raises(TypeError, match=r"parameters hold a (str|Linear), expected tensors"):
            manager.override_config(wrong, "lr", 0.1)
        with pytest.raises(TypeError, match=r"parameters hold a (str|Linear), expected tensors"):
            manager.register_parameters(wrong)
    with pytest.raises(TypeError, match=r"module is a Parameter, expected a torch\.nn\.Module"):
        manager.register_module_override(nn.Parameter(torch.ones(2)), "weight", {"lr": 0.1})  # type: ignore[arg-type]


def test_unknown_name_of_a_module_override(manager: GlobalOptimManager) -> None:
    with pytest.raises(ValueError, match="sparse cannot be overridden"):
        manager.register_module_override(nn.Linear(2, 2), "weight", {"sparse": True})
