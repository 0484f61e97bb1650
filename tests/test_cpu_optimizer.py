"""The native optimizer steps against the reference and against float64 mathematics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)


from bnb_core.backends.cpu import _native, optimizer
from bnb_core.backends.cpu.levels import AVAILABLE
from bnb_core.backends.reference import optimizer as reference
from bnb_core.ops_registry import EXACT, differences
from bnb_core.ops_registry.codebooks import dynamic_map
from bnb_core.ops_registry.formats import (
    BLOCKWISE,
    FP32,
    OPTIMIZER_STATES,
    PER_TENSOR,
    ParameterLists,
    StateFormat,
    momenta,
)
from bnb_core.ops_registry.ops.optimizer import STEP

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RULES = tuple(OPTIMIZER_STATES)
FORMATS = (FP32, BLOCKWISE, PER_TENSOR)
# Tails of every length modulo a vector, ends of a block, none at all, and more than one thread takes.
SIZES = (0, 1, 7, 8, 17, 255, 256, 257, 1000, 40_003)


@pytest.fixture(params=AVAILABLE, autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test runs once for each level of instructions that this CPU has."""
    current.append(request.param)
    yield request.param
    current.pop()


current: list[str] = []


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The reference makes many small calls, which wait for each other where a machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2, 3, 4])
def threads(request: pytest.FixtureRequest, one_thread: None) -> int:
    torch.set_num_threads(request.param)
    return int(request.param)


# beta1, beta2, beta3, alpha, eps.
SCALARS = {
    "adam": (0.9, 0.999, 0.0, 0.0, 1e-8),
    "lamb": (0.9, 0.999, 0.0, 0.0, 1e-6),
    "ademamix": (0.9, 0.999, 0.9999, 5.0, 1e-8),
    "momentum": (0.9, 0.0, 0.0, 0.0, 0.0),
    "lars": (0.9, 0.0, 0.0, 0.0, 0.0),
    "lion": (0.9, 0.99, 0.0, 0.0, 0.0),
    "rmsprop": (0.99, 0.0, 0.0, 0.0, 1e-8),
    "adagrad": (0.0, 0.0, 0.0, 0.0, 1e-10),
}


class Run:
    """Parameters and their states from zero, and steps that a backend takes with them."""

    def __init__(self, form: StateFormat, rule: str, dtype: torch.dtype, sizes: tuple[int, ...] = SIZES) -> None:
        self.form, self.rule, self.steps = form, rule, 0
        self.generator = torch.Generator().manual_seed(len(rule) * 1000 + len(sizes))
        lead, two = momenta(rule), OPTIMIZER_STATES[rule] == 2

        def scales(copies: int) -> list[Tensor]:
            return [torch.zeros(copies * form.scales(n)) for n in sizes]

        self.lists = ParameterLists(
            grads=[torch.zeros(n, dtype=dtype) for n in sizes],
            params=[torch.randn(n, generator=self.generator).to(dtype) for n in sizes],
            state1=[torch.zeros(*lead, n, dtype=form.dtype) for n in sizes],
            state2=[torch.zeros(n, dtype=form.dtype) for n in sizes] if two else None,
            scale1=scales(lead[0] if lead else 1) if form.scale else None,
            scale2=scales(1) if form.scale and two else None,
            unorm_vec=None if form.scale else [torch.full((1,), -1.0) for _ in sizes],
        )
        signed = rule not in ("rmsprop", "adagrad")
        self.maps = (dynamic_map(signed=signed), dynamic_map(signed=False) if two else None)

    def gradients(self) -> None:
        for g in self.lists.grads:
            g.copy_(torch.randn(g.shape, generator=self.generator) * 0.1)

    def step(
        self, backend: Any, decay: float = 0.1, max_unorm: float = 0.0, skip_zeros: bool = False, lr: float = 0.01
    ) -> None:
        """One step of all parameters in one call."""
        self.steps += 1
        numbers = torch.tensor(float(self.steps)), torch.tensor(lr)
        scalars = (*SCALARS[self.rule], decay, 0.9, skip_zeros)
        lists = self.lists
        tensors = lists[:4]
        if self.form is FP32:
            backend.optimizer_step_32bit(self.rule, *tensors, lists.unorm_vec, *numbers, max_unorm, *scalars)
            return
        function = getattr(backend, f"optimizer_step_{self.form.name}")
        function(self.rule, *tensors, *self.maps, lists.scale1, lists.scale2, *numbers, *scalars)

    def update(self, backend: Any, i: int, step: int, decay: float = 0.1, lr: float = 0.01) -> None:
        """A step of one parameter in the form that takes one."""
        of = {field: tensors[i] for field, tensors in self.lists._asdict().items() if tensors is not None}
        tensors = (of["grads"], of["params"], of["state1"], of.get("state2"))
        if self.form is FP32:
            norms = (of["unorm_vec"], 0.0, 0.0)
            backend.optimizer_update_32bit(
                self.rule, *tensors, *norms, *SCALARS[self.rule], decay, step, lr, 0.9, False
            )
            return
        function = getattr(backend, f"optimizer_update_{self.form.name}")
        scales = (of["scale1"], of.get("scale2"))
        function(self.rule, *tensors, *SCALARS[self.rule], step, lr, *self.maps, *scales, decay, 0.9, False)

    def tensors(self) -> list[Tensor]:
        return [tensor for field in self.lists if field is not None for tensor in field]


def native() -> optimizer.Optimizer:
    kernels: optimizer.Optimizer = getattr(optimizer.kernels, current[-1])
    return kernels


def assert_same_bits(found: Run, expected: Run) -> None:
    for field, tensors in expected.lists._asdict().items():
        for i, (a, b) in enumerate(zip(getattr(found.lists, field) or (), tensors or (), strict=True)):
            unlike = (a != b) & ~(a.isnan() & b.isnan())
            assert not unlike.any(), (field, i, int(unlike.sum()), a[unlike][:4], b[unlike][:4])


# Torch's square root may be one bit off, and with it the parameter; through weight decay of the gradient, moments too.
EXACT_PARAMETERS = ("momentum", "lars", "lion")
EXACT_MOMENTS = (*EXACT_PARAMETERS, "adam", "lamb", "ademamix")


def assert_agree(found: Run, expected: Run) -> None:
    """Equal bits where the rule takes no square root, else the operators' tolerance."""
    for field, tensors in expected.lists._asdict().items():
        exact = found.rule in (EXACT_PARAMETERS if field == "params" else EXACT_MOMENTS)
        for i, (a, b) in enumerate(zip(getattr(found.lists, field) or (), tensors or (), strict=True)):
            assert not differences(a, b, EXACT if exact else STEP, f"{field}[{i}]")


each_rule = pytest.mark.parametrize("rule", RULES)
each_form = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@each_form
@each_rule
@each_dtype
def test_steps_are_those_of_the_reference(form: StateFormat, rule: str, dtype: torch.dtype) -> None:
    """Step after step from zero, with weight decay and without, all sizes in one list."""
    ours, theirs = Run(form, rule, dtype), Run(form, rule, dtype)
    for decay in (0.0, 0.1, 0.1, 0.1):
        for run, backend in ((ours, native()), (theirs, reference)):
            run.gradients()
            run.step(backend, decay)
    assert_agree(ours, theirs)


@each_form
@each_rule
def test_one_parameter_is_a_list_of_one(form: StateFormat, rule: str) -> None:
    many, single = Run(form, rule, torch.float32), Run(form, rule, torch.float32)
    for step in (1, 2, 3):
        many.gradients()
        many.step(native())
        single.gradients()
        for i in range(len(SIZES)):
            single.update(native(), i, step)
    assert_same_bits(many, single)


@each_form
@each_rule
def test_zeros_are_skipped(form: StateFormat, rule: str) -> None:
    """Elements, whole blocks, and whole parameters without a gradient keep parameter, moments, codes and scales."""
    ours, theirs = Run(form, rule, torch.float32), Run(form, rule, torch.float32)
    for steps in range(4):
        for run, backend in ((ours, native()), (theirs, reference)):
            run.gradients()
            if steps:
                for g in run.lists.grads:
                    g[::3] = 0
                    g[256 : 256 * 20] = 0
                run.lists.grads[5][:] = -0.0
            run.step(backend, skip_zeros=steps > 0)
    assert_agree(ours, theirs)
    for g in ours.lists.grads:
        g.zero_()
    before = [t.clone() for t in ours.tensors()]
    ours.step(native(), skip_zeros=True)
    assert all(map(torch.equal, ours.tensors(), before))


@each_form
@each_rule
def test_threads_do_not_change_the_bits(form: StateFormat, rule: str, threads: int) -> None:
    sizes = (100_001, 3, 0, 256, 300_000, 257)
    run = Run(form, rule, torch.float32, sizes)
    again = Run(form, rule, torch.float32, sizes)
    for _ in range(2):
        run.gradients()
        run.step(native(), max_unorm=0.0 if form.scale else 0.1)
        again.gradients()
        torch.set_num_threads(1)
        again.step(native(), max_unorm=0.0 if form.scale else 0.1)
        torch.set_num_threads(threads)
    assert_same_bits(run, again)


@each_form
def test_many_small_and_a_large_parameter(form: StateFormat, threads: int) -> None:
    sizes = (*[5] * 300, 200_000, *[0] * 10, *[257] * 300, 0)
    ours, theirs = Run(form, "adam", torch.bfloat16, sizes), Run(form, "adam", torch.bfloat16, sizes)
    ours.gradients()
    ours.step(native())
    torch.set_num_threads(1)
    theirs.gradients()
    theirs.step(reference)
    assert_agree(ours, theirs)


@each_form
def test_dtypes_mixed_in_a_list(form: StateFormat) -> None:
    ours, theirs = Run(form, "adam", torch.float32), Run(form, "adam", torch.float32)
    for run, backend in ((ours, native()), (theirs, reference)):
        run.gradients()
        for i in range(len(SIZES)):
            for tensors in (run.lists.params, run.lists.grads):
                tensors[i] = tensors[i].to(DTYPES[i % 3])  # type: ignore[index]
        run.step(backend)
    assert_agree(ours, theirs)


@each_form
@each_rule
def test_strided_tensors(form: StateFormat, rule: str) -> None:
    """Each tensor with gaps, alone: what is written arrives, and nothing else is written."""
    dense = Run(form, rule, torch.float16)
    dense.gradients()
    dense.step(native())
    for field in ParameterLists._fields:
        run = Run(form, rule, torch.float16)
        run.gradients()
        tensors = getattr(run.lists, field)
        if tensors is None:
            continue
        around = []
        for i, tensor in enumerate(tensors):
            memory = torch.full((*tensor.shape, 2), 7).to(tensor.dtype)
            memory[..., 0] = tensor
            tensors[i] = memory[..., 0]
            around.append(memory[..., 1])
        run.step(native())
        assert_same_bits(run, dense)
        assert all((gap == 7).all() for gap in around)


@each_form
@each_rule
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_where_it_came_in(form: StateFormat, rule: str, value: float) -> None:
    """In its element with fp32 state; in its block, or parameter, with coded state: its scale becomes NaN."""
    ours, theirs = Run(form, rule, torch.float32), Run(form, rule, torch.float32)
    for steps in range(3):
        for run, backend in ((ours, native()), (theirs, reference)):
            run.gradients()
            if steps == 1:
                run.lists.grads[-1][300] = value
            run.step(backend)
    assert_agree(ours, theirs)
    poisoned = ours.lists.params[-1].isnan()
    first, last = {"32bit": (300, 301), "8bit_blockwise": (256, 512), "8bit": (0, SIZES[-1])}[form.name]
    assert not poisoned[:first].any()
    assert not poisoned[last:].any()


@each_rule
@pytest.mark.parametrize("skip_zeros", [False, True])
def test_the_norm_of_the_update_is_limited(rule: str, skip_zeros: bool) -> None:
    ours, theirs = Run(FP32, rule, torch.float32), Run(FP32, rule, torch.float32)
    for _ in range(3):
        for run, backend in ((ours, native()), (theirs, reference)):
            run.gradients()
            for g in run.lists.grads:
                g[::5] = 0
            run.step(backend, max_unorm=0.02, skip_zeros=skip_zeros)
    for field, tensors in theirs.lists._asdict().items():
        for a, b in zip(getattr(ours.lists, field) or (), tensors or (), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert ours.lists.unorm_vec is not None
    assert ours.lists.unorm_vec[0] == 0


def test_the_norm_of_the_parameter_may_be_given() -> None:
    ours, theirs = Run(FP32, "lamb", torch.float32, (1000,)), Run(FP32, "lamb", torch.float32, (1000,))
    for run, backend in ((ours, native()), (theirs, reference)):
        run.gradients()
        lists = run.lists
        assert lists.state2 is not None
        assert lists.unorm_vec is not None
        tensors = (lists.grads[0], lists.params[0], lists.state1[0], lists.state2[0], lists.unorm_vec[0])
        for norm in (1000.0, 3.0, 0.0, math.nan):  # no limit, a limit, and none for a parameter of zeros
            backend.optimizer_update_32bit("lamb", *tensors, 0.05, norm, *SCALARS["lamb"], 0.1, 1, 0.01, 1.0, False)
    torch.testing.assert_close(ours.lists.params[0], theirs.lists.params[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.lists.unorm_vec, theirs.lists.unorm_vec, rtol=1e-6, atol=0.0)


def test_eps_of_zero_in_a_tail_gives_a_finite_norm() -> None:
    """Lanes past the end must not come in as 0 / 0."""
    run = Run(FP32, "adam", torch.float32, (3,))
    run.gradients()
    tensors = [field[0] for field in run.lists if field is not None]
    g, p, state1, state2, unorm = tensors
    native().optimizer_update_32bit(
        "adam", g, p, state1, state2, unorm, 1.0, 1.0, 0.9, 0.999, 0.0, 0.0, 0.0, 0.0, 1, 0.01, 1.0, False
    )
    assert unorm.isfinite()
    assert p.isfinite().all()


def test_adam_in_float64() -> None:
    """Ten steps of AdamW by its formula."""
    run = Run(FP32, "adam", torch.float32, (1000,))
    beta1, beta2, _, _, eps = SCALARS["adam"]
    p = run.lists.params[0].double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for step in range(1, 11):
        run.gradients()
        g = run.lists.grads[0].double() * 0.9
        run.step(native(), decay=0.1, lr=0.01)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        root = (v / (1 - beta2**step)).sqrt()
        p = p * (1 - 0.01 * 0.1) - 0.01 * m / (1 - beta1**step) / (root + eps)
    torch.testing.assert_close(run.lists.params[0].double(), p, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("adamw", "float32", 8), "unknown optimizer 'adamw'"),
        (("adam", "float64", 8), "unknown dtype 'float64', known are float32, float16, bfloat16"),
        (("adam", "float32", 7), "expected 8 lists"),
    ],
)
def test_a_native_call_that_is_wrong_is_an_error(arguments: tuple[str, str, int], error: str, level: str) -> None:
    rule, dtype, count = arguments
    with pytest.raises((ValueError, TypeError), match=error):
        step_of_lists(level, rule, dtype, ([],) * count)


def test_lists_of_different_lengths_are_an_error(level: str) -> None:
    with pytest.raises(ValueError, match="lists differ in length"):
        step_of_lists(level, "adam", "float32", ([], [0], *[[]] * 6))


def step_of_lists(level: str, rule: str, dtype: str, lists: tuple[list[int], ...]) -> None:
    now = torch.tensor((1.0, 0.01))
    settings = (0.9, 0.999, 0.0, 0.0, 1e-8, 0.0, 1.0, False)
    places = (now[0].data_ptr(), now[1].data_ptr())
    getattr(_native, level).optimizer_step_32bit(rule, dtype, lists, *places, settings, 0.0, -1.0, 1)
