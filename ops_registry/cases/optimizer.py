"""Inputs of the optimizer operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..codebooks import dynamic_map
from ..formats import FLOATS, FP32, OPTIMIZER_STATES, ParameterLists, StateFormat, argument_names, momenta
from .maker import BadCase, Case, Maker

# beta1, beta2, beta3, alpha, eps of each rule, as its optimizer passes them.
_SCALARS: dict[str, tuple[float, float, float, float, float]] = {
    "adam": (0.9, 0.999, 0.0, 0.0, 1e-8),
    "lamb": (0.9, 0.999, 0.0, 0.0, 1e-8),
    "ademamix": (0.9, 0.999, 0.9999, 5.0, 1e-8),
    "momentum": (0.9, 0.0, 0.0, 0.0, 0.0),
    "lars": (0.9, 0.0, 0.0, 0.0, 0.0),
    "lion": (0.9, 0.99, 0.0, 0.0, 0.0),
    "rmsprop": (0.99, 0.0, 0.0, 0.0, 1e-8),
    "adagrad": (0.0, 0.0, 0.0, 0.0, 1e-10),
}


def _scalars(rule: str, eps: float | None) -> tuple[float, ...]:
    return _SCALARS[rule] if eps is None else (*_SCALARS[rule][:-1], eps)


def _lists(
    make: Maker, form: StateFormat, rule: str, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> ParameterLists:
    two, lead = OPTIMIZER_STATES[rule] == 2, momenta(rule)

    def state(shape: tuple[int, ...], positive: bool) -> Tensor:
        if form.dtype is torch.uint8:
            return make.bytes(*shape)
        values = make.normal(*shape, scale=0.1)
        return values.abs() if positive else values

    def scales(copies: int) -> list[Tensor]:
        return [
            make.positive(copies * form.scales(torch.Size(s).numel())).view(*lead[: copies - 1], -1) for s in shapes
        ]

    first_is_square = rule in ("rmsprop", "adagrad")
    return ParameterLists(
        grads=[make.normal(*s, dtype=dtype, scale=0.1) for s in shapes],
        params=[make.normal(*s, dtype=dtype) for s in shapes],
        state1=[state((*lead, *s), first_is_square) for s in shapes],
        state2=[state(s, True) for s in shapes] if two else None,
        scale1=scales(lead[0] if lead else 1) if form.scale else None,
        scale2=scales(1) if form.scale and two else None,
        unorm_vec=[make.tensor([0.0]) for _ in shapes] if rule in ("lamb", "lars") and not form.scale else None,
    )


def _maps(make: Maker, rule: str) -> tuple[Tensor, Tensor | None]:
    second = dynamic_map(signed=False).to(make.device) if OPTIMIZER_STATES[rule] == 2 else None
    return dynamic_map(signed=rule not in ("rmsprop", "adagrad")).to(make.device), second


def _single(tensors: Sequence[Tensor] | None) -> Tensor | None:
    return None if tensors is None else tensors[0]


def _update_args(
    form: StateFormat,
    make: Maker,
    rule: str,
    lists: ParameterLists,
    step: int,
    weight_decay: float,
    skip_zeros: bool,
    eps: float | None = None,
) -> tuple[Any, ...]:
    tensors = (lists.grads[0], lists.params[0], lists.state1[0], _single(lists.state2))
    if form is FP32:
        unorm, max_unorm = (lists.unorm_vec[0], 0.1) if lists.unorm_vec else (None, 0.0)
        norm = float(lists.params[0].float().norm())
        return (rule, *tensors, unorm, max_unorm, norm, *_scalars(rule, eps), weight_decay, step, 0.01, 0.9, skip_zeros)
    scales = _single(lists.scale1), _single(lists.scale2)
    return (
        rule,
        *tensors,
        *_scalars(rule, eps),
        step,
        0.01,
        *_maps(make, rule),
        *scales,
        weight_decay,
        0.9,
        skip_zeros,
    )


def _step_args(
    form: StateFormat,
    make: Maker,
    rule: str,
    lists: ParameterLists,
    step: int,
    weight_decay: float,
    skip_zeros: bool,
    eps: float | None = None,
) -> tuple[Any, ...]:
    tensors = (lists.grads, lists.params, lists.state1, lists.state2)
    on_device = make.tensor(float(step)), make.tensor(0.01)
    scalars = (*_scalars(rule, eps), weight_decay, 0.9, skip_zeros)
    if form is FP32:
        return (rule, *tensors, lists.unorm_vec, *on_device, 0.1 if lists.unorm_vec else 0.0, *scalars)
    return (rule, *tensors, *_maps(make, rule), lists.scale1, lists.scale2, *on_device, *scalars)


def optimizer_args(
    form: StateFormat,
    many: bool,
    make: Maker,
    rule: str,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    step: int,
    weight_decay: float,
    skip_zeros: bool,
) -> tuple[Any, ...]:
    """Arguments of a step of parameters of these shapes, of the first alone where the form is not `many`."""
    lists = _lists(make, form, rule, shapes, dtype)
    return (_step_args if many else _update_args)(form, make, rule, lists, step, weight_decay, skip_zeros)


def optimizer_cases(form: StateFormat, many: bool) -> Any:
    args = _step_args if many else _update_args
    shapes: list[tuple[int, ...]] = [(600,), (7, 33), (1,), (0,)]

    def make_cases(make: Maker) -> Iterator[Case]:
        sizes = [shapes] if many else [[shape] for shape in shapes]
        if make.full:
            sizes += [[(n,)] for n in (255, 256, 257, 5000)]
        for rule in OPTIMIZER_STATES:
            for dtype in FLOATS:
                for size in sizes:
                    lists = _lists(make, form, rule, size, dtype)
                    for step, decay in ((1, 0.0), (10, 0.1)):
                        name = f"{rule} {dtype} {[list(s) for s in size]} step {step} decay {decay}"
                        yield Case(name, args(form, make, rule, lists, step, decay, False))
            lists = _lists(make, form, rule, [(600,)], torch.float32)
            lists.grads[0][::3] = 0
            yield Case(f"{rule} skip zeros", args(form, make, rule, lists, 5, 0.1, True))
            lists = _lists(make, form, rule, [(20, 30)], torch.float32)
            strided = lists._replace(
                grads=[make.strided(lists.grads[0])], params=[lists.params[0].t().contiguous().t()]
            )
            # The first step, with a weight decay, and an eps that is seen.
            yield Case(f"{rule} strided", args(form, make, rule, strided, 1, 0.1, False, 0.05))
            lists = _lists(make, form, rule, [(600,)], torch.float32)
            lists.grads[0][3], lists.grads[0][300] = torch.nan, torch.inf
            yield Case(f"{rule} NaN and Inf", args(form, make, rule, lists, 5, 0.1, False))
        if many:
            # More than the arguments of one launch hold where they list them.
            lists = _lists(make, form, "adam", [(n,) for n in range(60)], torch.float32)
            yield Case("60 parameters", args(form, make, "adam", lists, 5, 0.1, False))
            empty = ParameterLists([], [], [], [], [] if form.scale else None, [] if form.scale else None)
            yield Case("no parameters", args(form, make, "adam", empty, 5, 0.1, False))

    return make_cases


# The first arguments of each form, by (8 bit, lists).
_TENSORS = ("optimizer_name", "grads", "params", "state1", "state2")
_ARGUMENTS = {
    (False, False): (*_TENSORS, "unorm_vec", "max_unorm"),
    (False, True): (*_TENSORS, "unorm_vec", "step", "lr", "max_unorm"),
    (True, False): (*_TENSORS, "beta1", "beta2", "beta3", "alpha", "eps", "step", "lr", "qmap1", "qmap2"),
    (True, True): (*_TENSORS, "qmap1", "qmap2", "scale1", "scale2", "step", "lr"),
}


def bad_optimizer_cases(form: StateFormat, many: bool) -> Any:
    build = _step_args if many else _update_args
    label = {field: name.format(0) for field, name in argument_names(form, many).items()}

    def make_bad_cases(make: Maker) -> Iterator[BadCase]:
        good = _lists(make, form, "adam", [(600,)], torch.float32)

        def args(rule: str = "adam", step: int = 3, **changed: Any) -> tuple[Any, ...]:
            made = build(form, make, "adam", good._replace(**changed), step, 0.0, False)
            return (rule, *made[1:])

        def field(name: str) -> str:
            return label[name].replace("[", r"\[").replace("]", r"\]")

        yield BadCase("rule", args("adamw"), "optimizer_name is 'adamw', expected one of adam, lamb")
        yield BadCase("state too many", args("lion"), "state2 is given, expected None: lion has 1 state")
        yield BadCase("no state2", args(state2=None), "state2 is None, expected one: adam has 2 states")
        wrong = make.normal(599)
        yield BadCase("grad shape", args(grads=[wrong]), rf"{field('grads')} has shape \(599,\), expected \(600,\)")
        yield BadCase(
            "grad dtype", args(grads=[good.grads[0].half()]), f"{field('grads')} is float16, expected float32"
        )
        params, grads = [good.params[0].double()], [good.grads[0].double()]
        yield BadCase(
            "param dtype", args(params=params, grads=grads), f"{field('params')} is float64, expected float32"
        )
        state = good.state1[0]
        yield BadCase("state shape", args(state1=[state[1:]]), rf"{field('state1')} has shape \(599,\), expected")
        yield BadCase("state dtype", args(state1=[state.short()]), f"{field('state1')} is int16, expected")
        yield BadCase("state2 dtype", args(state2=[state.short()]), f"{field('state2')} is int16, expected")
        yield BadCase("device", args(state1=[state.to("meta")]), "is on .*, expected .* as the other tensors")
        yield BadCase("ademamix", args("ademamix"), rf"{field('state1')} has shape \(600,\), expected \(2, 600\)")
        yield BadCase("state2 shape", args(state2=[state[1:]]), rf"{field('state2')} has shape \(599,\), expected")
        arguments = _ARGUMENTS[form.scale != "", many]
        if form.scale:
            for scale, found in (("scale1", good.scale1), ("scale2", good.scale2)):
                assert found is not None
                longer: dict[str, Any] = {scale: [make.positive(5)]}
                half: dict[str, Any] = {scale: [found[0].half()]}
                yield BadCase(
                    f"{scale} length", args(**longer), f"{field(scale)} has 5 elements, but a state of .* needs"
                )
                yield BadCase(f"{scale} dtype", args(**half), f"{field(scale)} is float16, expected float32")
            yield BadCase("no scale2", args(scale2=None), f"{form.scale}2 is None, expected one as for state2")
            code = make.normal(256)
            yield BadCase(
                "qmap1", replaced(args(), arguments.index("qmap1"), code.half()), "qmap1 is float16, expected float32"
            )
            yield BadCase(
                "qmap2", replaced(args(), arguments.index("qmap2"), code.half()), "qmap2 is float16, expected float32"
            )
            yield BadCase(
                "no qmap2", replaced(args(), arguments.index("qmap2"), None), "qmap2 is None, expected a code"
            )
        else:
            unorm = replaced(args(), arguments.index("max_unorm"), 0.5)
            yield BadCase("no unorm", unorm, "unorm_vec is None, but max_unorm 0.5 needs one")
            yield BadCase("unorm size", args(unorm_vec=[make.positive(2)]), f"{field('unorm_vec')} has 2 elements")
            yield BadCase("unorm dtype", args(unorm_vec=[make.bytes(1)]), f"{field('unorm_vec')} is uint8, expected")
        if many:
            for name in ("step", "lr"):
                wrong_ndim, wrong_dtype = make.tensor([3.0]), make.tensor(1, torch.int64)
                yield BadCase(
                    f"{name} ndim", replaced(args(), arguments.index(name), wrong_ndim), f"{name} has 1 dimensions"
                )
                yield BadCase(
                    f"{name} dtype", replaced(args(), arguments.index(name), wrong_dtype), f"{name} is int64, expected"
                )
            yield BadCase("lengths", args(grads=[]), "grads has 0 tensors, but params has 1")
        else:
            yield BadCase("step 0", args(step=0), "step is 0, expected at least 1")

    return make_bad_cases


def replaced(args: tuple[Any, ...], position: int, value: Any) -> tuple[Any, ...]:
    return (*args[:position], value, *args[position + 1 :])
