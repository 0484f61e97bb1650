"""The optimizers: against torch's own, against the public package's saved runs, and what saving and bad input do."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from bnb_core import ops_registry, optim

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "state_dicts"
CLASSES = [optim.Adam, optim.Adam8bit, optim.Adam32bit, optim.AdamW, optim.AdamW8bit, optim.AdamW32bit]


def parameters(device: torch.device, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((64, 128), (7,), (3, 1000))
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in shapes]


def set_gradients(params: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p) * 0.1


def train(params: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        set_gradients(params, step)
        optimizer.step()


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (optim.Adam, torch.optim.Adam, {"lr": 1e-2}),
        (optim.Adam32bit, torch.optim.Adam, {"lr": 1e-3, "betas": (0.8, 0.95), "eps": 1e-6}),
        (optim.AdamW, torch.optim.AdamW, {"lr": 1e-2}),
        (optim.Adam, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    ],
)
def test_32bit_equals_torch(ours: Any, theirs: Any, options: dict[str, Any], device: torch.device) -> None:
    a, b = parameters(device), parameters(device)
    train(a, ours(a, **options), 0, 200)
    train(b, theirs(b, **options), 0, 200)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_8bit_follows_32bit(dtype: torch.dtype, device: torch.device) -> None:
    a, b = parameters(device, dtype), parameters(device, dtype)
    start = [p.detach().clone() for p in a]
    train(a, optim.Adam8bit(a, lr=1e-2), 0, 30)
    train(b, optim.Adam32bit(b, lr=1e-2), 0, 30)
    for p, q, s in zip(a, b, start, strict=True):
        moved = (q - s).float().abs().mean()
        assert moved > 0.01
        assert (p - q).float().abs().mean() < 0.05 * moved


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_state_format_and_min_8bit_size(cls: Any, device: torch.device) -> None:
    params = parameters(device)
    optimizer = cls(params, min_8bit_size=3000)
    train(params, optimizer, 0, 1)
    for p in params:
        state = optimizer.state[p]
        if "8bit" in cls.__name__ and p.numel() >= 3000:
            assert state["state1"].dtype == state["state2"].dtype == torch.uint8
            assert state["absmax1"].shape == state["absmax2"].shape == (-(-p.numel() // 256),)
            assert set(state) == {"step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"}
        else:
            assert state["state1"].dtype == torch.float32 and set(state) == {"step", "state1", "state2"}


def test_one_dispatch_for_parameters_that_are_alike(device: torch.device) -> None:
    params = [torch.nn.Parameter(torch.randn(5000, device=device)) for _ in range(20)]
    optimizer = optim.AdamW8bit(params)
    ops_registry.reset_kernel_counts()
    train(params, optimizer, 0, 1)
    counts = ops_registry.kernel_counts()
    assert {op: n for (op, _, _), n in counts.items()} == {"optimizer_step_8bit_blockwise": 1}


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
@pytest.mark.parametrize("name", ["adam8bit", "adamw8bit", "adam32"])
def test_saved_runs_of_the_public_package(name: str, device: torch.device) -> None:
    """Three steps from the same start give its parameters; its state dict loads, in its own layout."""
    golden = torch.load(GOLDEN / f"optim.{name}.pt", weights_only=True)
    params = [torch.nn.Parameter(golden[key].clone().to(device)) for key in ("p0", "q0")]
    cls = {"adam8bit": optim.Adam8bit, "adamw8bit": optim.AdamW8bit, "adam32": optim.Adam}[name]
    optimizer = cls(params, **golden["kwargs"])
    for step in range(3):
        for p, seed, shape in zip(params, (830, 840), ((33, 128), (8,)), strict=True):
            generator = torch.Generator().manual_seed(seed + step)
            p.grad = (torch.randn(shape, generator=generator) * 0.1).to(device)
        optimizer.step()
    ours, theirs = optimizer.state_dict()["state"], golden["state_dict"]["state"]
    assert {k: set(v) for k, v in ours.items()} == {k: set(v) for k, v in theirs.items()}
    wrapper = "__bnb_optimizer_quant_state__"
    for key, state in theirs.items():
        assert ours[key]["step"] == state["step"] == 3
        for tensor_name, want in state[wrapper].items():
            got = ours[key][wrapper][tensor_name].cpu()
            assert (got.dtype, got.shape) == (want.dtype, want.shape), tensor_name
            if want.dtype == torch.uint8:  # theirs come from a 65536-bin table, up to 3e-5 of absmax off
                assert ((got.int() - want.int()).abs() > 1).float().mean() < 0.002, tensor_name
            else:
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)
    again = cls(params, lr=0.5)
    again.load_state_dict(golden["state_dict"])
    assert again.state_dict()["state"].keys() == theirs.keys()
    for key, state in again.state_dict()["state"].items():
        for tensor_name, got in state[wrapper].items():
            assert torch.equal(got.cpu(), theirs[key][wrapper][tensor_name])


def test_lr_as_a_tensor_and_a_scheduler(device: torch.device) -> None:
    a, b = parameters(device), parameters(device)
    first, second = optim.Adam(a, lr=torch.tensor(1e-2, device=device)), optim.Adam(b, lr=1e-2)
    for optimizer, params in ((first, a), (second, b)):
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
        for step in range(5):
            set_gradients(params, step)
            optimizer.step()
            scheduler.step()
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q)


def test_closure_and_missing_gradients(device: torch.device) -> None:
    params = parameters(device)
    before = params[1].detach().clone()
    optimizer = optim.AdamW([{"params": params[:1], "lr": 0.1}, {"params": params[1:], "weight_decay": 0.3}])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
    assert torch.equal(params[1], before) and params[1] not in optimizer.state


def test_strided_parameters_and_gradients(device: torch.device) -> None:
    values, gradient = torch.randn(80, 90, device=device), torch.randn(80, 90, device=device)
    dense, strided = torch.nn.Parameter(values.clone()), torch.nn.Parameter(values.t().contiguous().t())
    dense.grad, strided.grad = gradient, gradient.t().contiguous().t()
    for p in (dense, strided):
        optim.AdamW8bit([p], lr=0.1).step()
    assert not strided.is_contiguous() and torch.equal(dense, strided)


def test_nan_gradient_stays_with_its_parameter(device: torch.device) -> None:
    params, clean = parameters(device), parameters(device)
    optimizer = optim.AdamW8bit(params)
    set_gradients(params, 0)
    params[0].grad[0, 0] = torch.nan  # type: ignore[index]
    optimizer.step()
    train(clean, optim.AdamW8bit(clean), 0, 1)
    assert params[0].isnan().any()
    for p, q in zip(params[1:], clean[1:], strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"lr": -1.0}, "lr is -1.0, expected at least 0"),
        ({"lr": float("nan")}, "lr is nan, expected at least 0"),
        ({"eps": -1e-8}, "eps is -1e-08, expected at least 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1, expected at least 0"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\), expected 2 of at least 0 and below 1"),
        ({"betas": (0.9,)}, r"betas are \(0.9,\), expected 2 of"),
        ({"args": object()}, "args is given, but options are given one by one"),
        ({"is_paged": True}, "is_paged is True, but this version keeps no paged state"),
        ({"optim_bits": 4}, "optim_bits is 4, expected 8 or 32"),
        ({"amsgrad": True}, "amsgrad is True, but"),
    ],
)
def test_bad_hyperparameters(options: dict[str, Any], error: str, device: torch.device) -> None:
    with pytest.raises(ValueError, match=error):
        optim.Adam(parameters(device), **options)


def test_bad_hyperparameters_of_a_group(device: torch.device) -> None:
    with pytest.raises(ValueError, match="lr is -1, expected at least 0"):
        optim.Adam([{"params": parameters(device), "lr": -1}])


def test_sparse_gradient_is_refused(device: torch.device) -> None:
    p = torch.nn.Parameter(torch.zeros(4, 4, device=device))
    p.grad = torch.eye(4, device=device).to_sparse()
    with pytest.raises(RuntimeError, match=r"AdamW takes dense gradients, got a sparse one of \(4, 4\)"):
        optim.AdamW([p]).step()


def test_public_arguments_in_their_order(device: torch.device) -> None:
    params = parameters(device)
    optimizer = optim.Adam8bit(params, 1e-3, (0.9, 0.99), 1e-8, 0, False, 32, None, 3000, False)
    train(params, optimizer, 0, 1)
    assert optimizer.state[params[2]]["state1"].dtype == torch.uint8
    assert optim.AdamW(params, optim_bits=8, is_paged=False).defaults["optim_bits"] == 8
    with pytest.raises(ValueError, match="optim_bits is 8, but Adam32bit keeps 32-bit state"):
        optim.Adam32bit(params, optim_bits=8)


def test_a_refused_step_changes_nothing(device: torch.device) -> None:
    params = parameters(device)
    optimizer = optim.Adam(params)
    set_gradients(params, 0)
    before = [p.detach().clone() for p in params]
    params[2].grad = params[2].grad.to_sparse()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="takes dense gradients"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert all(optimizer.state[p]["step"] == 0 for p in params[:2])


WRAPPER = "__bnb_optimizer_quant_state__"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda s: s.update(absmax1=s["absmax1"][:4]), "absmax1 has 4 scales, expected 32, one per 256 elements"),
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


def test_state_of_torch_is_refused_at_loading(device: torch.device) -> None:
    params = parameters(device)
    theirs = torch.optim.Adam(params)
    train(params, theirs, 0, 1)
    with pytest.raises(ValueError, match="state of parameter 0 has step, exp_avg, exp_avg_sq; expected step, state1"):
        optim.Adam(params).load_state_dict(theirs.state_dict())
