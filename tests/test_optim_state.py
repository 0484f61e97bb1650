"""Saving and loading the state of optimizers: exact, with the public package, in other formats, and what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizers import RULES, make, parameters, train
from peers import public_package

from bnb_core import functional, optim

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "state_dicts"
WRAPPER = "__bnb_optimizer_quant_state__"


def assert_close_but_for_codes(p: torch.Tensor, wanted: torch.Tensor, tolerance: float, lr: float) -> None:
    """Theirs come from a table of 65536 bins: a few codes are not the nearest, and their elements take other steps."""
    difference = (p.detach() - wanted).abs()
    assert (difference > tolerance * wanted.abs() + 2e-5).float().mean() < 0.01
    assert difference.max() <= 2 * lr


def train_as_saved(params: list[torch.nn.Parameter], optimizer: Any, first: int, last: int) -> None:
    """Steps with the gradients of the saved runs."""
    for step in range(first, last):
        for p, seed, shape in zip(params, (830, 840), ((33, 128), (8,)), strict=True):
            generator = torch.Generator().manual_seed(seed + step)
            p.grad = (torch.randn(shape, generator=generator) * 0.1).to(p.device)
        optimizer.step()


@pytest.mark.parametrize("cls", [optim.Adam32bit, optim.AdamW8bit])
@pytest.mark.parametrize("way", ["state_dict", "torch.save", "pickle", "deepcopy"])
def test_resuming_equals_never_having_stopped(cls: Any, way: str, device: torch.device, tmp_path: Path) -> None:
    whole = parameters(device)
    train(whole, cls(whole, lr=1e-2), 0, 6)
    params = parameters(device)
    optimizer = cls(params, lr=1e-2)
    train(params, optimizer, 0, 3)
    if way == "deepcopy":
        params, optimizer = copy.deepcopy((params, optimizer))
    elif way == "pickle":
        params, optimizer = pickle.loads(pickle.dumps((params, optimizer)))
    else:
        saved = optimizer.state_dict()
        if way == "torch.save":
            torch.save(saved, tmp_path / "optimizer.pt")
            saved = torch.load(tmp_path / "optimizer.pt", weights_only=True)
        optimizer = cls(params, lr=0.5)
        optimizer.load_state_dict(saved)
    train(params, optimizer, 3, 6)
    for p, q in zip(params, whole, strict=True):
        assert torch.equal(p, q)


def test_loading_keeps_dtypes_of_state_with_bf16_parameters(device: torch.device) -> None:
    params = parameters(device, torch.bfloat16)
    optimizer = optim.Adam32bit(params)
    train(params, optimizer, 0, 2)
    again = optim.Adam32bit(params)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[params[0]]["state1"].dtype == torch.float32
    assert torch.equal(again.state[params[0]]["state1"], optimizer.state[params[0]]["state1"])


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden state dicts are not beside this clone")
@pytest.mark.parametrize("name", sorted(file.stem.partition(".")[2] for file in GOLDEN.glob("optim.*.pt")))
def test_saved_runs_of_the_public_package(name: str, device: torch.device) -> None:
    """Three steps from the same start give its parameters; its state dict loads, in its own layout."""
    golden = torch.load(GOLDEN / f"optim.{name}.pt", weights_only=True)
    params = [torch.nn.Parameter(golden[key].clone().to(device)) for key in ("p0", "q0")]
    cls = getattr(optim, golden["class"])
    optimizer = cls(params, **golden["kwargs"])
    train_as_saved(params, optimizer, 0, 3)
    for p, key in zip(params, ("p3", "q3"), strict=True):
        assert_close_but_for_codes(p, golden[key].to(device), 1e-4, optimizer.defaults["lr"])
    saved = optimizer.state_dict()
    ours, theirs = saved["state"], golden["state_dict"]["state"]
    assert {k: set(v) for k, v in ours.items()} == {k: set(v) for k, v in theirs.items()}
    for group, wanted in zip(saved["param_groups"], golden["state_dict"]["param_groups"], strict=True):
        assert group | wanted == wanted | group, "what both have is the same"
        assert wanted.keys() - group.keys() <= {"alpha", "t_alpha", "t_beta3"}
    for key, state in theirs.items():
        assert ours[key]["step"] == state["step"] == 3
        assert set(ours[key][WRAPPER]) == set(state[WRAPPER])
        for tensor_name, want in state[WRAPPER].items():
            got = ours[key][WRAPPER][tensor_name].cpu()
            assert (got.dtype, got.shape) == (want.dtype, want.shape), tensor_name
            if want.dtype == torch.uint8:
                assert ((got.int() - want.int()).abs() > 1).float().mean() < 0.002, tensor_name
            else:
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)
    again = cls(params, **golden["kwargs"] | {"lr": 0.5})
    again.load_state_dict(golden["state_dict"])
    assert again.state_dict()["state"].keys() == theirs.keys()
    for key, state in again.state_dict()["state"].items():
        for tensor_name, got in state[WRAPPER].items():
            assert torch.equal(got.cpu(), theirs[key][WRAPPER][tensor_name])
    train_as_saved(params, optimizer, 3, 5)
    ahead = [p.detach().clone() for p in params]
    for p, key in zip(params, ("p3", "q3"), strict=True):
        p.detach().copy_(golden[key])
    train_as_saved(params, again, 3, 5)
    for p, q in zip(params, ahead, strict=True):
        assert_close_but_for_codes(p, q, 1e-3, optimizer.defaults["lr"])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda s: s.update(absmax1=s["absmax1"][:5]), "absmax1 has 5 scales, expected 32, one per 256 elements"),
        (
            lambda s: s.update(state2=s["state2"][1:]),
            r"state2 is torch.uint8 \(63, 128\), expected .* \(64, 128\)",
        ),
        (lambda s: s.update(state1=s["state1"].float()), r"state1 is torch.float32 .*, expected torch.uint8"),
        (lambda s: s.update(qmap2=s["qmap1"]), "qmap2 is not the dynamic map"),
        (lambda s: s.pop("absmax2"), "expected step, state1, qmap1, absmax1, state2, qmap2, absmax2"),
        (lambda s: s.clear(), "expected step, state1, state2"),
    ],
)
def test_foreign_state_is_refused_at_loading(change: Any, error: str, device: torch.device) -> None:
    params = parameters(device)
    optimizer = optim.Adam8bit(params)
    train(params, optimizer, 0, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved["state"][0][WRAPPER])
    with pytest.raises(ValueError, match=f"state of parameter 0.*{error}"):
        optimizer.load_state_dict(saved)


def test_step_that_is_no_number_is_refused(device: torch.device) -> None:
    params = parameters(device)
    optimizer = optim.Adam8bit(params)
    train(params, optimizer, 0, 1)
    saved = optimizer.state_dict()
    saved["state"][1]["step"] = None
    with pytest.raises(ValueError, match="state of parameter 1: step is None, expected a number"):
        optimizer.load_state_dict(saved)


def test_state_of_torch_is_refused_at_loading(device: torch.device) -> None:
    params = parameters(device)
    theirs = torch.optim.Adam(params)
    train(params, theirs, 0, 1)
    with pytest.raises(ValueError, match="state of parameter 0 has step, exp_avg, exp_avg_sq; expected step, state1"):
        optim.Adam(params).load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("format", [{"bits": 32}, {"bits": 8}, {"bits": 8, "block_wise": False}], ids=str)
@pytest.mark.parametrize("before", [{"bits": 32}, {"bits": 8}, {"bits": 8, "block_wise": False}], ids=str)
def test_loading_into_another_format(
    rule: str, before: dict[str, Any], format: dict[str, Any], device: torch.device
) -> None:
    """The format is that of the optimizer which loads; values stay what they are, as far as it can say them."""
    params = parameters(device)
    common = {"min_8bit_size": 100, "lr": 1e-2} | ({"max_unorm": 0} if rule in ("lamb", "lars") else {})
    optimizer = make(rule, params, **common, **before)
    train(params, optimizer, 0, 3)
    fresh, other = make(rule, params, **common, **format), make(rule, params, **common, bits=32)
    fresh.load_state_dict(optimizer.state_dict())
    other.load_state_dict(optimizer.state_dict())
    first = fresh.state[params[0]]
    assert ("qmap1" in first, "max1" in first) == (format["bits"] == 8, not format.get("block_wise", True))
    assert "qmap1" not in fresh.state[params[1]] and first["step"] == 3
    again = make(rule, params, **common, bits=32)
    again.load_state_dict(fresh.state_dict())
    for p in params:
        want, got = other.state[p]["state1"], again.state[p]["state1"]
        assert (want - got).abs().max() <= (0.05 * want.abs().max() if format["bits"] == 8 else 0)
    train(params, fresh, 3, 4)
    assert all(torch.isfinite(p).all() for p in params) and fresh.state[params[0]]["step"] == 4


@pytest.mark.parametrize("rule", ["lion", "adamw", "ademamix"])
def test_older_scales_of_2048_elements(rule: str, device: torch.device) -> None:
    params = parameters(device)
    exact = make(rule, params, bits=32)
    train(params, exact, 0, 3)
    optimizer = make(rule, params, bits=8)
    train(params, optimizer, 0, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    older = saved["state"][0][WRAPPER]
    for i in (1, 2):
        value = exact.state[params[0]].get(f"state{i}")
        if value is not None:
            parts = list(value) if value.ndim == 3 else [value]
            pairs = [functional.quantize_blockwise(v, older[f"qmap{i}"], blocksize=2048) for v in parts]
            older[f"state{i}"] = torch.stack([codes for codes, _ in pairs]).view(value.shape)
            older[f"absmax{i}"] = torch.cat([state.absmax for _, state in pairs])
    optimizer.load_state_dict(saved)
    plain = make(rule, params, bits=32)
    plain.load_state_dict(optimizer.state_dict())
    for name in ("state1", "state2"):
        if name in exact.state[params[0]]:
            want, got = exact.state[params[0]][name], plain.state[params[0]][name]
            assert (want - got).abs().max() < 0.05 * want.abs().max()
    assert optimizer.state[params[0]]["absmax1"].numel() == (2 if rule == "ademamix" else 1) * 32


def test_older_scale_per_tensor_with_its_second_buffer(device: torch.device) -> None:
    params = parameters(device)
    optimizer = optim.Adam8bit(params, block_wise=False)
    train(params, optimizer, 0, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    flat = saved["state"][0].pop(WRAPPER)
    saved["state"][0] |= flat | {"new_max1": torch.zeros(1), "new_max2": torch.zeros(1)}
    again = optim.Adam8bit(params, block_wise=False)
    again.load_state_dict(saved)
    assert set(again.state[params[0]]) == {"step", "state1", "state2", "qmap1", "qmap2", "max1", "max2"}
    assert torch.equal(again.state[params[0]]["max1"], flat["max1"])


def test_format_options_are_not_saved(device: torch.device) -> None:
    params = parameters(device)
    optimizer = optim.AdamW(params, lr=0.5, optim_bits=8, min_8bit_size=100, percentile_clipping=90)
    group = optimizer.state_dict()["param_groups"][0]
    assert not group.keys() & {"optim_bits", "min_8bit_size", "block_wise", "is_paged"}
    again = optim.AdamW(params, min_8bit_size=7000)
    again.load_state_dict(optimizer.state_dict())
    group = again.param_groups[0]
    assert (group["lr"], group["percentile_clipping"]) == (0.5, 90)
    assert (group["optim_bits"], group["min_8bit_size"]) == (32, 7000)


def test_saved_groups_without_our_options_leave_them(device: torch.device) -> None:
    """The public package saves none of them."""
    params = parameters(device)
    optimizer = optim.AdamW([{"params": params, "maximize": True, "percentile_clipping": 50, "skip_zeros": True}])
    saved = optimizer.state_dict()
    for name in ("maximize", "percentile_clipping", "skip_zeros", "max_unorm"):
        del saved["param_groups"][0][name]
    saved["param_groups"][0] |= {"lr": 0.25, "optim_bits": 8}
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["maximize"], group["percentile_clipping"], group["skip_zeros"]) == (True, 50, True)
    assert (group["lr"], group["optim_bits"]) == (0.25, 32)


def test_saved_hyperparameters_are_checked(device: torch.device) -> None:
    params = parameters(device)
    limited = optim.LAMB(params, max_unorm=0.5)
    with pytest.raises(ValueError, match=r"parameter group 0 of the state dict: max_unorm is 0\.5, expected"):
        optim.LAMB8bit(params).load_state_dict(limited.state_dict())
    with pytest.raises(ValueError, match=r"parameter group 0 of the state dict: betas are .*, expected 2"):
        optim.Adam(params).load_state_dict(optim.AdEMAMix(params).state_dict())


def test_norms_that_some_states_have(device: torch.device) -> None:
    """Left by an override that is there no more."""
    params = parameters(device)
    manager = optim.GlobalOptimManager.get_instance()
    manager.override_config(params[0], key_value_dict={"max_unorm": 0.5, "percentile_clipping": 50})
    optimizer = optim.Adam(params)
    train(params, optimizer, 0, 2)
    saved = optimizer.state_dict()
    manager.initialize()
    again = optim.Adam(params)
    again.load_state_dict(saved)
    train(params, again, 2, 3)
    assert again.state[params[0]]["step"] == 3


def test_groups_that_differ_are_refused(device: torch.device) -> None:
    params = parameters(device)
    optimizer = optim.Adam8bit(params)
    train(params, optimizer, 0, 1)
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        optim.Adam8bit(params[:2]).load_state_dict(optimizer.state_dict())
    other = [torch.nn.Parameter(torch.zeros(5, device=device)), *params[1:]]
    two = optim.Adam8bit([{"params": other[:1]}, {"params": other[1:]}]).state_dict()
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        optim.Adam8bit([{"params": params[:2]}, {"params": params[2:]}]).load_state_dict(two)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optim.Adam8bit([{"params": [p]} for p in params]).load_state_dict(optimizer.state_dict())


def test_hooks_see_the_state(device: torch.device) -> None:
    params = parameters(device)
    optimizer = optim.Adam8bit(params)
    train(params, optimizer, 0, 1)
    again, seen = optim.Adam8bit(params), []
    again.register_load_state_dict_pre_hook(lambda _, given: seen.append(given["state"][0][WRAPPER]["state1"].dtype))
    again.register_load_state_dict_post_hook(lambda loaded: seen.append(loaded.state[params[0]]["state1"].dtype))
    again.load_state_dict(optimizer.state_dict())
    assert seen == [torch.uint8, torch.uint8]


@pytest.mark.parametrize("rule", RULES)
def test_as_safetensors(rule: str, device: torch.device, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    params = parameters(device)
    optimizer = make(rule, params, bits=8)
    train(params, optimizer, 0, 2)
    saved = optimizer.state_dict()
    flat = {f"{key}.{name}": t for key, state in saved["state"].items() for name, t in state[WRAPPER].items()}
    safetensors.save_file(flat, tmp_path / "state.safetensors")
    for name, tensor in safetensors.load_file(tmp_path / "state.safetensors").items():
        key, _, name = name.partition(".")
        saved["state"][int(key)][WRAPPER][name] = tensor
    again = make(rule, params, bits=8)
    again.load_state_dict(saved)
    for p in params:
        for name, value in optimizer.state[p].items():
            assert torch.equal(again.state[p][name], value)


def test_state_can_stay_where_it_was_saved(device: torch.device) -> None:
    params = parameters(device)
    optimizer = optim.Adam8bit(params)
    train(params, optimizer, 0, 1)
    meta = copy.deepcopy(optimizer.state_dict())
    for state in meta["state"].values():
        state[WRAPPER] = {name: tensor.cpu() for name, tensor in state[WRAPPER].items()}
    optimizer.load_state_dict(meta, move_to_device=False)
    assert optimizer.state[params[0]]["state1"].device.type == "cpu"
    optimizer.load_state_dict(meta)
    assert optimizer.state[params[0]]["state1"].device.type == device.type


@pytest.mark.parametrize("name", ["AdamW8bit", "Adam", "Lion8bit", "AdEMAMix8bit", "RMSprop8bit", "Adagrad8bit"])
def test_with_the_public_package(name: str) -> None:
    """Two steps there, two here, and the other way round, give what four of ours give."""
    theirs = public_package().optim
    device = torch.device("cpu")
    expected = parameters(device)
    train(expected, getattr(optim, name)(expected, lr=1e-2), 0, 4)
    for first, second in ((theirs, optim), (optim, theirs)):
        params = parameters(device)
        optimizer = getattr(first, name)(params, lr=1e-2)
        train(params, optimizer, 0, 2)
        again = getattr(second, name)(params, lr=0.1)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(params, again, 2, 4)
        for p, q in zip(params, expected, strict=True):
            # A few elements take other steps, where a code of theirs is not the nearest.
            assert ((p - q).abs() > 2e-3).float().mean() < 0.01
