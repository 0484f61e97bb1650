"""The optimizers: against torch's own and float64 mathematics, in one dispatch, compiled, and with bad input."""

from __future__ import annotations

import inspect
import math
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizers import RULES, make, parameters, set_gradients, train
from torch import Tensor
from torch._higher_order_ops.auto_functionalize import can_auto_functionalize

from bnb_core import ops_registry, optim

SIGNATURES = (Path(__file__).parent / "optimizer_signatures.txt").read_text().splitlines()
CLASSES = [getattr(optim, line.partition("(")[0]) for line in SIGNATURES if line[:5] != "Pytor"]


@pytest.mark.parametrize("line", SIGNATURES, ids=lambda line: line.partition("(")[0])
def test_signature_is_that_of_the_public_package(line: str) -> None:
    """Names, order and defaults; ours may have more, by name."""
    cls = getattr(optim, line.partition("(")[0])
    theirs = inspect.signature(eval(f"lambda {line.partition('(')[2][:-1]}: 0")).parameters.values()
    ours = list(inspect.signature(cls).parameters.values())
    for want, got in zip(theirs, ours, strict=False):
        assert got.name == want.name
        if want.name != "optim_bits":  # Adagrad8bit says 8, where others say 32
            assert got.default == want.default
    assert len(ours) >= len(list(theirs))


def test_only_what_is_asked_is_imported() -> None:
    program = (
        "import bnb_core, sys; bnb_core.optim.Lion; print([m for m in sys.modules if m.startswith('bnb_core.optim.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "bnb_core.optim.lion" in done.stdout
    assert not any(f"optim.{other}'" in done.stdout for other in ("adam", "lars", "factory", "rmsprop"))


def test_no_module_has_the_name_of_a_class_or_function() -> None:
    assert not {module.name for module in pkgutil.iter_modules(optim.__path__)} & set(optim.__all__)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bits", [8, 32])
def test_create(name: str, bits: int, device: torch.device) -> None:
    optimizer = make(name.upper(), parameters(device), bits=bits, weight_decay=0.25)
    assert type(optimizer).__name__.lower() == name
    assert (optimizer.defaults["optim_bits"], optimizer.defaults["weight_decay"]) == (bits, 0.25)


def test_create_lists_the_known_names(device: torch.device) -> None:
    with pytest.raises(ValueError, match="no optimizer 'adamax'; known are adagrad, adam, adamw, ademamix, lamb, lars"):
        optim.create("adamax", parameters(device))


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (optim.Adam, torch.optim.Adam, {"lr": 1e-2}),
        (optim.Adam32bit, torch.optim.Adam, {"lr": 1e-3, "betas": (0.8, 0.95), "eps": 1e-6}),
        (optim.Adam, torch.optim.Adam, {"lr": 1e-3, "maximize": True}),
        (optim.AdamW, torch.optim.AdamW, {"lr": 1e-2}),
        (optim.Adam, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
        (optim.SGD, torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
        (optim.SGD32bit, torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "maximize": True}),
        (optim.SGD, torch.optim.SGD, {"lr": 1e-2}),
        (optim.RMSprop, torch.optim.RMSprop, {"lr": 1e-3}),
        (optim.RMSprop32bit, torch.optim.RMSprop, {"lr": 1e-3, "alpha": 0.9, "eps": 1e-5, "weight_decay": 0.1}),
        (optim.Adagrad, torch.optim.Adagrad, {"lr": 1e-2}),
        (optim.Adagrad32bit, torch.optim.Adagrad, {"lr": 1e-2, "weight_decay": 0.1}),
        (optim.LARS, optim.PytorchLARS, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ],
)
def test_32bit_equals_torch(ours: Any, theirs: Any, options: dict[str, Any], device: torch.device) -> None:
    a, b = parameters(device), parameters(device)
    train(a, ours(a, **options), 0, 200)
    train(b, theirs(b, **options), 0, 200)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-5)


def expected_lion(p: Tensor, g: Tensor, m: list[Tensor], t: int) -> Tensor:
    update = torch.sign(0.9 * m[0] + 0.1 * g)
    m[0] = 0.99 * m[0] + 0.01 * g
    return p * (1 - 1e-2 * 0.1) - 1e-2 * update


def expected_ademamix(p: Tensor, g: Tensor, m: list[Tensor], t: int) -> Tensor:
    b1, b2, b3 = 0.9, 0.999, 0.9999
    alpha = 5.0 * min(t / 20, 1)
    if t < 30:
        a, b = math.log(b1), math.log(b3)
        b3 = math.exp(a * b / ((1 - t / 30) * b + t / 30 * a))
    m[0], m[1], m[2] = b1 * m[0] + (1 - b1) * g, b3 * m[1] + (1 - b3) * g, b2 * m[2] + (1 - b2) * g * g
    update = (m[0] / (1 - b1**t) + alpha * m[1]) / ((m[2] / (1 - b2**t)).sqrt() + 1e-8)
    return p * (1 - 1e-2 * 0.1) - 1e-2 * update


def expected_lamb(p: Tensor, g: Tensor, m: list[Tensor], t: int) -> Tensor:
    m[0], m[1] = 0.9 * m[0] + 0.1 * g, 0.999 * m[1] + 0.001 * g * g
    c1, c2 = 1 - 0.9**t, math.sqrt(1 - 0.999**t)
    direction = m[0] / (m[1].sqrt() + 1e-8 * c2)
    largest = 0.5 * p.norm()
    limit = min(1.0, float(largest / direction.norm())) if largest > 0 else 1.0
    return p * (1 - 1e-2 * 0.1) - 1e-2 * limit * direction * c2 / c1


@pytest.mark.parametrize(
    ("cls", "options", "expected"),
    [
        (optim.Lion, {}, expected_lion),
        (optim.AdEMAMix, {"t_alpha": 20, "t_beta3": 30}, expected_ademamix),
        (optim.LAMB, {"max_unorm": 0.5}, expected_lamb),
    ],
)
def test_32bit_equals_float64_mathematics(cls: Any, options: Any, expected: Any, device: torch.device) -> None:
    params = parameters(device)
    doubles = [(p.detach().double(), [torch.zeros_like(p, dtype=torch.float64) for _ in range(3)]) for p in params]
    optimizer = cls(params, lr=1e-2, weight_decay=0.1, **options)
    for t in range(1, 51):
        set_gradients(params, t)
        optimizer.step()
        doubles = [(expected(x, p.grad.double(), m, t), m) for p, (x, m) in zip(params, doubles, strict=True)]
    for p, (x, _) in zip(params, doubles, strict=True):
        torch.testing.assert_close(p.double(), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block_wise", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_8bit_follows_32bit(rule: str, block_wise: bool, dtype: torch.dtype, device: torch.device) -> None:
    a, b = parameters(device, dtype), parameters(device, dtype)
    start = [p.detach().clone() for p in a]
    options = {"lr": 1e-2, "min_8bit_size": 100}
    unlimited = {"max_unorm": 0} if rule in ("lamb", "lars") else {}
    train(a, make(rule, a, bits=8, block_wise=block_wise, **options), 0, 30)
    train(b, make(rule, b, bits=32, **options, **unlimited), 0, 30)
    # The second average of Adam spans more than one scale per tensor can tell apart.
    close = 0.05 if block_wise else 0.25
    for p, q, s in zip(a, b, start, strict=True):
        moved = (q - s).float().abs().mean()
        assert moved > 1e-3
        if p.numel() >= 100:
            assert (p - q).float().abs().mean() < close * moved


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("block_wise", [True, False])
@pytest.mark.filterwarnings("ignore:is_paged is True")
def test_state_format_and_min_8bit_size(cls: Any, block_wise: bool, device: torch.device) -> None:
    params = parameters(device)
    required = {"lr": 0.1} if cls.__name__.startswith(("SGD", "LARS")) else {}
    optimizer = cls(params, min_8bit_size=3000, block_wise=block_wise, **required)
    train(params, optimizer, 0, 1)
    lead = (2,) if "AdEMAMix" in cls.__name__ else ()
    numbers = range(1, ops_registry.OPTIMIZER_STATES[cls.rule] + 1)
    for p in params:
        state = dict(optimizer.state[p])
        assert (state.pop("step"), state.pop("unorm_vec", None) is not None) == (
            1,
            optimizer.defaults["max_unorm"] > 0,
        )
        in_8bit = "8bit" in cls.__name__ and p.numel() >= 3000
        for i in numbers:
            first = lead if i == 1 else ()
            value = state.pop(f"state{i}")
            assert (value.shape, value.dtype) == ((*first, *p.shape), torch.uint8 if in_8bit else torch.float32)
            if in_8bit:
                scales = state.pop(f"absmax{i}" if block_wise else f"max{i}")
                assert scales.shape == ((*first, -(-p.numel() // 256)) if block_wise else first or (1,))
                assert state.pop(f"qmap{i}").shape == (256,)
        assert not state


def test_one_dispatch_for_parameters_that_are_alike(device: torch.device) -> None:
    params = [torch.nn.Parameter(torch.randn(5000, device=device)) for _ in range(20)]
    optimizer = optim.AdamW8bit(params)
    ops_registry.reset_kernel_counts()
    train(params, optimizer, 0, 1)
    counts = ops_registry.kernel_counts()
    assert {op: n for (op, _, _), n in counts.items()} == {"optimizer_step_8bit_blockwise": 1}


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
        ({"percentile_clipping": 101}, "percentile_clipping is 101, expected a whole number of 0 to 100"),
        ({"percentile_clipping": 5.5}, "percentile_clipping is 5.5, expected a whole number"),
        ({"max_unorm": -1}, "max_unorm is -1, expected at least 0"),
        (
            {"max_unorm": 0.5, "optim_bits": 8},
            "max_unorm is 0.5, expected 0.0 with optim_bits=8: a step on 8-bit state",
        ),
        ({"optim_bits": 4}, "optim_bits is 4, expected 8 or 32"),
        ({"amsgrad": True}, "amsgrad is True, which the step operators do not know: leave it False"),
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


def test_gradient_of_another_dtype_is_refused(device: torch.device) -> None:
    p = torch.nn.Parameter(torch.zeros(4, device=device))
    if not hasattr(p, "grad_dtype"):
        pytest.skip("this torch allows gradients of the parameter's dtype only")
    p.grad_dtype = None
    p.grad = torch.ones(4, device=device, dtype=torch.float64)
    optimizer = optim.AdamW([p])
    with pytest.raises(RuntimeError, match="takes gradients of the parameter's dtype torch"):
        optimizer.step()
    assert not optimizer.state


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


@pytest.mark.parametrize("bits", [8, 32])
def test_lars_moves_a_parameter_of_zeros(bits: int, device: torch.device) -> None:
    p = torch.nn.Parameter(torch.zeros(64, 80, device=device))
    p.grad = torch.ones_like(p)
    optim.create("lars", [p], lr=0.5, momentum=0.9, bits=bits).step()
    torch.testing.assert_close(p, torch.full_like(p, -0.5))


def test_skip_zeros_leaves_parameter_and_state(device: torch.device) -> None:
    for bits in (8, 32):
        p = torch.nn.Parameter(torch.ones(10, 512, device=device))
        optimizer = optim.create("adamw", [p], bits=bits, lr=0.1, skip_zeros=True)
        p.grad = torch.ones_like(p)
        optimizer.step()
        after, state = p.detach().clone(), optimizer.state[p]["state1"].clone()
        p.grad[::2] = 0
        optimizer.step()
        assert torch.equal(p[::2], after[::2]) and torch.equal(optimizer.state[p]["state1"][::2], state[::2])
        assert (p[1::2] < after[1::2]).all()


def test_percentile_clipping(device: torch.device) -> None:
    """A gradient 100 times as large as the ten before it counts as the largest of the norms it is clipped to."""
    params = [torch.nn.Parameter(torch.zeros(5000, device=device)) for _ in range(3)]
    optimizer = optim.SGD(params, lr=1.0, percentile_clipping=5)
    ops_registry.reset_kernel_counts()
    for step in range(12):
        before = [p.detach().clone() for p in params]
        for i, p in enumerate(params):
            p.grad = torch.full_like(p, 100.0 if (step, i) == (11, 0) else 1.0)
        optimizer.step()
    moved = [(q - p).mean().item() for p, q in zip(params, before, strict=True)]
    assert moved == pytest.approx([1.0, 1.0, 1.0], rel=1e-5)
    counts = {op: n for (op, _, _), n in ops_registry.kernel_counts().items()}
    assert counts == {"percentile_clipping": 36, "optimizer_step_32bit": 13}


@pytest.mark.parametrize("bits", [8, 32])
def test_some_parameters_without_gradients(bits: int, device: torch.device) -> None:
    """Step counters are shared, and yet each parameter has its own number of steps."""
    together, alone = parameters(device), parameters(device)
    optimizers = [make("adamw", [p], bits=bits, lr=1e-2) for p in alone]
    optimizer = make("adamw", together, bits=bits, lr=1e-2)
    present = [(0, 1, 2), (0, 2), (1,), (0, 1, 2), (), (2,), (0, 1, 2)]
    for step, chosen in enumerate(present):
        for params in (together, alone):
            set_gradients(params, step)
            for i, p in enumerate(params):
                p.grad = p.grad if i in chosen else None
        optimizer.step()
        for i in chosen:
            optimizers[i].step()
    assert [int(optimizer.state[p]["step"]) for p in together] == [4, 4, 5]
    for p, q in zip(together, alone, strict=True):
        assert torch.equal(p, q)


def test_parameters_of_several_dtypes_in_one_group(device: torch.device) -> None:
    """One dispatch for each dtype, and each parameter as if it were alone."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16) * 2
    params = [torch.nn.Parameter(torch.randn(5000, device=device).to(dtype)) for dtype in dtypes]
    single = [torch.nn.Parameter(p.detach().clone()) for p in params]
    optimizer, others = optim.Lion8bit(params, lr=0.1), [optim.Lion8bit([p], lr=0.1) for p in single]
    for step in range(2):
        set_gradients(params, step)
        for p, q, other in zip(params, single, others, strict=True):
            q.grad = p.grad.clone()  # type: ignore[union-attr]
            other.step()
        ops_registry.reset_kernel_counts()
        optimizer.step()
        assert sum(ops_registry.kernel_counts().values()) == 3
    for p, q in zip(params, single, strict=True):
        assert torch.equal(p, q)


def test_a_parameter_that_changes_its_group(device: torch.device) -> None:
    """Groups do not share step counters, whether the parameter goes on or waits."""
    for waits in (False, True):
        params = parameters(device)
        optimizer = optim.Adam(params)
        train(params, optimizer, 0, 1)
        optimizer.add_param_group({"params": [optimizer.param_groups[0]["params"].pop()], "lr": 0.1})
        set_gradients(params, 1)
        params[2].grad = None if waits else params[2].grad
        optimizer.step()
        assert [int(optimizer.state[p]["step"]) for p in params] == [2, 2, 1 if waits else 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_a_dtype_that_is_refused_changes_nothing(dtype: torch.dtype, device: torch.device) -> None:
    params = [torch.nn.Parameter(torch.ones(4, device=device, dtype=d)) for d in (torch.float32, dtype)]
    optimizer = optim.Adam([{"params": params[:1]}, {"params": params[1:]}])
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=f"Adam takes parameters in fp32, fp16 or bf16, got one in {dtype}"):
        optimizer.step()
    assert (params[0] == 1).all() and optimizer.state[params[0]]["step"] == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_compiled_step_is_one_graph(rule: str, bits: int, device: torch.device) -> None:
    """Without a break and without compiling again, also where the learning rate changes."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    a, b = parameters(device), parameters(device)
    options = {"lr": torch.tensor(1e-2, device=device), "min_8bit_size": 100, "weight_decay": 0.1}
    first, second = make(rule, a, bits=bits, **options), make(rule, b, bits=bits, **options)
    counter = CompileCounter()
    # Before the scheduler, which wraps the method of the optimizer, and then complains that it is not called.
    compiled = torch.compile(first.step, fullgraph=True, backend=counter)
    schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1) for optimizer in (first, second)]
    for p in a:
        p.grad = torch.zeros_like(p)
    for step in range(5):
        set_gradients(b, step)
        for p, q in zip(a, b, strict=True):
            p.grad.copy_(q.grad)  # type: ignore[union-attr, arg-type]
        compiled()
        second.step()
        for scheduler in schedulers:
            scheduler.step()
    assert counter.frame_count == 1
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p, q)


def test_compiled_step_with_gradients_that_come_and_go(device: torch.device) -> None:
    torch._dynamo.reset()
    a, b = parameters(device), parameters(device)
    first, second = (optim.Adam(params, lr=torch.tensor(1e-2, device=device)) for params in (a, b))
    compiled = torch.compile(first.step, backend="eager")
    for step in range(6):
        for params in (a, b):
            set_gradients(params, step)
            params[1].grad = None if step in (2, 3) else params[1].grad
        compiled()
        second.step()
    assert [int(first.state[p]["step"]) for p in a] == [int(second.state[p]["step"]) for p in b] == [6, 4, 6]
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p, q)


def test_compiled_step_without_asserts(device: torch.device) -> None:
    """`python -O` leaves them out; what the compiled step guards on is read all the same."""
    program = """
import torch, sys
from bnb_core import optim
params = [torch.nn.Parameter(torch.ones(n, device=sys.argv[1])) for n in (64, 7, 30)]
optimizer = optim.Adam(params, lr=torch.tensor(1e-2, device=sys.argv[1]))
compiled = torch.compile(optimizer.step, backend="eager")
for step in range(6):
    for p in params:
        p.grad = torch.ones_like(p)
    params[1].grad = None if step in (2, 3) else params[1].grad
    compiled()
print(__debug__, *(int(optimizer.state[p]["step"]) for p in params))
"""
    done = subprocess.run([sys.executable, "-O", "-c", program, device.type], capture_output=True, text=True)
    if "get_assert_bytecode_sequence" in done.stderr:
        pytest.skip("under python -O this torch compiles nothing that has a branch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "6", "4", "6"]


@pytest.mark.skipif(
    not can_auto_functionalize(torch.ops.bnb_core.optimizer_step_8bit_blockwise.default),
    reason="this torch traces no optional list that is written",
)
def test_compiled_by_inductor(device: torch.device) -> None:
    torch._dynamo.reset()
    a, b = parameters(device), parameters(device)
    first, second = optim.AdamW8bit(a, lr=1e-2), optim.AdamW8bit(b, lr=1e-2)
    compiled = torch.compile(first.step)
    for step in range(3):
        set_gradients(a, step)
        set_gradients(b, step)
        compiled()
        second.step()
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p, q)


def test_paged_state_is_ordinary_memory_where_there_is_none_said_once(device: torch.device) -> None:
    if ops_registry.paged_memory(device) is not None:
        pytest.skip(f"a backend has paged memory for {device.type}")
    program = """
import torch, warnings, sys
from bnb_core import optim
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for cls in (optim.PagedAdamW8bit, optim.PagedLion, optim.PagedAdam32bit):
        p = torch.nn.Parameter(torch.ones(200000, device=sys.argv[1]))
        p.grad = torch.ones_like(p)
        cls([p], lr=0.1).step()
        assert (p < 1).all()
print([str(w.message) for w in said])
"""
    done = subprocess.run([sys.executable, "-c", program, device.type], capture_output=True, text=True, check=True)
    message = f"is_paged is True, but no backend has paged memory for {device.type}: state is kept in ordinary memory"
    assert done.stdout.strip() == str([message])


class Memory:
    """Ordinary memory that counts."""

    def __init__(self) -> None:
        self.made: list[tuple[int, ...]] = []
        self.places: list[int] = []
        self.prefetched = 0

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        self.made.append(shape)
        result = torch.zeros(shape, dtype=dtype, device=device)
        self.places.append(result.untyped_storage().data_ptr())
        return result

    def prefetch(self, tensor: Tensor) -> None:
        assert tensor.dtype in (torch.uint8, torch.float32) and tensor.numel() >= 100_000
        assert any(tensor.untyped_storage().data_ptr() == place for place in self.places)
        self.prefetched += 1


def test_paged_memory_of_a_backend(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    monkeypatch.setitem(ops_registry.paging._offered, device.type, lambda: memory)
    params = [torch.nn.Parameter(torch.ones(n, device=device)) for n in (400, 500, 120_000)]
    optimizer = optim.PagedAdamW8bit(params, lr=0.1)
    train(params, optimizer, 0, 3)
    assert memory.made == [(120_000,), (120_000,)]
    assert memory.prefetched == 6, "two states, before each step"
    again = optim.PagedAdamW8bit(params, lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    assert memory.made == [(120_000,)] * 4
    assert torch.equal(again.state[params[2]]["state1"], optimizer.state[params[2]]["state1"])
    train(params, again, 3, 4)
