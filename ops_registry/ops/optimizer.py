"""Optimizer steps on 32-bit and 8-bit state (arXiv:2110.02861): one parameter, or lists of them in one dispatch.

A rule (`adam`, `lion`, …) is given by name, a state format by operator: fp32; 8-bit with a scale per block of 256;
8-bit with one scale per tensor. The `optimizer_step_*` forms read `step` and `lr` on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cases import FLOATS, BadCase, Case, Maker
from ..checks import Check, ceil_div
from ..codebooks import dynamic_map
from ..op import Op, define
from ..tolerance import Tolerance

# Rule → number of states. AdEMAMix keeps its two momenta in state1, as [2, *shape].
OPTIMIZER_STATES = {
    "adam": 2,
    "lamb": 2,
    "ademamix": 2,
    "momentum": 1,
    "lars": 1,
    "lion": 1,
    "rmsprop": 1,
    "adagrad": 1,
}
STATE_BLOCKSIZE = 256

STEP = Tolerance({torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}, codes=0.001)


class Format(NamedTuple):
    """A state format: dtype of the states, and how many scales a state of `elements` elements has."""

    name: str
    state_dtype: torch.dtype
    scale: str
    blocksize: int | None

    def scales(self, elements: Any) -> Any:
        return 1 if self.blocksize is None else ceil_div(elements, self.blocksize)


FP32 = Format("32bit", torch.float32, "", None)
BLOCKWISE = Format("8bit_blockwise", torch.uint8, "absmax", STATE_BLOCKSIZE)
PER_TENSOR = Format("8bit", torch.uint8, "max", None)


def _momenta(rule: str) -> tuple[int, ...]:
    return (2,) if rule == "ademamix" else ()


class _Lists(NamedTuple):
    """What every form has, as lists; a one-parameter form is a list of one."""

    grads: Sequence[Tensor]
    params: Sequence[Tensor]
    state1: Sequence[Tensor]
    state2: Sequence[Tensor] | None
    scale1: Sequence[Tensor] | None = None
    scale2: Sequence[Tensor] | None = None
    unorm_vec: Sequence[Tensor] | None = None


def _one(tensor: Tensor | None) -> list[Tensor] | None:
    return None if tensor is None else [tensor]


def _check_lists(
    check: Check, form: Format, rule: str, lists: _Lists, names: dict[str, str], device_of: Tensor
) -> None:
    """The rule's name, then for each parameter the dtypes, shapes and devices of all that belongs to it.

    names: field of `_Lists` → the argument's name in messages, with `{}` for the position in a list.
    """
    check.that(
        rule in OPTIMIZER_STATES, lambda: f"optimizer_name is {rule!r}, expected one of {', '.join(OPTIMIZER_STATES)}"
    )
    _check_lengths(check, lists, names)
    two = OPTIMIZER_STATES[rule] == 2
    expected = "one" if two else "None"
    states = f"{rule} has {OPTIMIZER_STATES[rule]} state{'s' * two}"
    check.that(
        (lists.state2 is not None) == two, lambda: f"state2 {_given(lists.state2)}, expected {expected}: {states}"
    )
    if form.scale:
        check.that(
            (lists.scale2 is not None) == two,
            lambda: f"{form.scale}2 {_given(lists.scale2)}, expected {expected} as for state2",
        )
    for i in range(len(lists.params)):
        label = {field: name.format(i) for field, name in names.items()}
        of = {field: tensors[i] for field, tensors in lists._asdict().items() if tensors is not None}
        _check_parameter(check, form, rule, of, label)
        check.one_device(device_of, **{label[field]: tensor for field, tensor in of.items()})


def _check_lengths(check: Check, lists: _Lists, names: dict[str, str]) -> None:
    count = len(lists.params)
    for field, tensors in lists._asdict().items():
        found = count if tensors is None else len(tensors)
        name = names[field].removesuffix("[{}]")
        check.that(found == count, _sentence(f"{name} has {found} tensors, but params has {count}"))


def _check_parameter(check: Check, form: Format, rule: str, of: dict[str, Tensor], label: dict[str, str]) -> None:
    """of: field of `_Lists` → the parameter's tensor, where it has one. label: the same → the argument's name."""
    p = of["params"]
    check.dtype(label["params"], p, FLOATS)
    check.dtype(label["grads"], of["grads"], (p.dtype,))
    check.shape(label["grads"], of["grads"], p.shape)
    for state, scale, lead in (("state1", "scale1", _momenta(rule)), ("state2", "scale2", ())):
        shape = (*lead, *p.shape)
        if state in of:
            check.dtype(label[state], of[state], (form.state_dtype,))
            check.shape(label[state], of[state], shape)
        if scale in of:
            check.dtype(label[scale], of[scale], (torch.float32,))
            wanted = form.scales(p.numel()) * (lead[0] if lead else 1)
            blocks = f" with blocksize {form.blocksize}" if form.blocksize else ""
            check.numel(label[scale], of[scale], wanted, _sentence(f"a state of shape {shape}{blocks}"))
    if "unorm_vec" in of:
        check.dtype(label["unorm_vec"], of["unorm_vec"], (torch.float32,))
        check.numel(label["unorm_vec"], of["unorm_vec"], 1, _sentence("one norm"))


def _sentence(text: str) -> Callable[[], str]:
    return lambda: text


def _given(value: object) -> str:
    return "is None" if value is None else "is given"


def _check_unorm(check: Check, max_unorm: float, unorm_vec: Any) -> None:
    check.that(
        not max_unorm > 0 or unorm_vec is not None, lambda: f"unorm_vec is None, but max_unorm {max_unorm} needs one"
    )


def _check_maps(check: Check, rule: str, qmap1: Tensor, qmap2: Tensor | None, device_of: Tensor) -> None:
    check.code("qmap1", qmap1)
    if OPTIMIZER_STATES[rule] == 2:
        check.that(qmap2 is not None, lambda: f"qmap2 is None, expected a code: {rule} has 2 states")
    if qmap2 is not None:
        check.code("qmap2", qmap2)
    check.one_device(device_of, qmap1=qmap1, qmap2=qmap2)


def _check_on_device(check: Check, step: Tensor, lr: Tensor) -> None:
    for name, tensor in (("step", step), ("lr", lr)):
        check.dtype(name, tensor, (torch.float32,))
        check.ndim(name, tensor, 0)
    check.one_device(step, lr=lr)


_ONE = {"grads": "g", "params": "p", "state1": "state1", "state2": "state2", "unorm_vec": "unorm_vec"}
_MANY = {"grads": "grads[{}]", "params": "params[{}]", "state1": "state1[{}]", "state2": "state2[{}]"}
_MANY |= {"unorm_vec": "unorm_vec[{}]"}


def _names(form: Format, many: bool) -> dict[str, str]:
    index = "[{}]" if many else ""
    return (_MANY if many else _ONE) | {"scale1": f"{form.scale}1{index}", "scale2": f"{form.scale}2{index}"}


_update_32bit = Check("optimizer_update_32bit")
_step_32bit = Check("optimizer_step_32bit")


def _check_update_32bit(
    optimizer_name: str,
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    unorm_vec: Tensor | None,
    max_unorm: float,
    param_norm: float,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    step: int,
    lr: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    lists = _Lists([g], [p], [state1], _one(state2), unorm_vec=_one(unorm_vec))
    _check_lists(_update_32bit, FP32, optimizer_name, lists, _names(FP32, False), g)
    _check_unorm(_update_32bit, max_unorm, unorm_vec)
    _update_32bit.at_least("step", step, 1)


def _check_step_32bit(
    optimizer_name: str,
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    state1: Sequence[Tensor],
    state2: Sequence[Tensor] | None,
    unorm_vec: Sequence[Tensor] | None,
    step: Tensor,
    lr: Tensor,
    max_unorm: float,
    *scalars: Any,
) -> None:
    lists = _Lists(grads, params, state1, state2, unorm_vec=unorm_vec)
    _check_on_device(_step_32bit, step, lr)
    _check_lists(_step_32bit, FP32, optimizer_name, lists, _names(FP32, True), step)
    _check_unorm(_step_32bit, max_unorm, unorm_vec)


def _update_8bit_check(form: Format) -> Any:
    check = Check(f"optimizer_update_{form.name}")

    def checked(
        optimizer_name: str,
        g: Tensor,
        p: Tensor,
        state1: Tensor,
        state2: Tensor | None,
        beta1: float,
        beta2: float,
        beta3: float,
        alpha: float,
        eps: float,
        step: int,
        lr: float,
        qmap1: Tensor,
        qmap2: Tensor | None,
        scale1: Tensor,
        scale2: Tensor | None,
        weight_decay: float,
        gnorm_scale: float,
        skip_zeros: bool = False,
    ) -> None:
        lists = _Lists([g], [p], [state1], _one(state2), [scale1], _one(scale2))
        _check_lists(check, form, optimizer_name, lists, _names(form, False), g)
        _check_maps(check, optimizer_name, qmap1, qmap2, g)
        check.at_least("step", step, 1)

    return checked


def _step_8bit_check(form: Format) -> Any:
    check = Check(f"optimizer_step_{form.name}")

    def checked(
        optimizer_name: str,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        state1: Sequence[Tensor],
        state2: Sequence[Tensor] | None,
        qmap1: Tensor,
        qmap2: Tensor | None,
        scale1: Sequence[Tensor],
        scale2: Sequence[Tensor] | None,
        step: Tensor,
        lr: Tensor,
        *scalars: Any,
    ) -> None:
        _check_on_device(check, step, lr)
        lists = _Lists(grads, params, state1, state2, scale1, scale2)
        _check_lists(check, form, optimizer_name, lists, _names(form, True), step)
        _check_maps(check, optimizer_name, qmap1, qmap2, step)

    return checked


# -- cases ---------------------------------------------------------------------------------------------------------

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


def _lists(make: Maker, form: Format, rule: str, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> _Lists:
    two, lead = OPTIMIZER_STATES[rule] == 2, _momenta(rule)

    def state(shape: tuple[int, ...], positive: bool) -> Tensor:
        if form.state_dtype is torch.uint8:
            return make.bytes(*shape)
        values = make.normal(*shape, scale=0.1)
        return values.abs() if positive else values

    def scales(copies: int) -> list[Tensor]:
        return [
            make.positive(copies * form.scales(torch.Size(s).numel())).view(*lead[: copies - 1], -1) for s in shapes
        ]

    first_is_square = rule in ("rmsprop", "adagrad")
    return _Lists(
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
    form: Format, make: Maker, rule: str, lists: _Lists, step: int, weight_decay: float, skip_zeros: bool
) -> tuple[Any, ...]:
    tensors = (lists.grads[0], lists.params[0], lists.state1[0], _single(lists.state2))
    if form is FP32:
        unorm, max_unorm = (lists.unorm_vec[0], 0.1) if lists.unorm_vec else (None, 0.0)
        norm = float(lists.params[0].float().norm())
        return (rule, *tensors, unorm, max_unorm, norm, *_SCALARS[rule], weight_decay, step, 0.01, 0.9, skip_zeros)
    scales = _single(lists.scale1), _single(lists.scale2)
    return (rule, *tensors, *_SCALARS[rule], step, 0.01, *_maps(make, rule), *scales, weight_decay, 0.9, skip_zeros)


def _step_args(
    form: Format, make: Maker, rule: str, lists: _Lists, step: int, weight_decay: float, skip_zeros: bool
) -> tuple[Any, ...]:
    tensors = (lists.grads, lists.params, lists.state1, lists.state2)
    on_device = make.tensor(float(step)), make.tensor(0.01)
    scalars = (*_SCALARS[rule], weight_decay, 0.9, skip_zeros)
    if form is FP32:
        return (rule, *tensors, lists.unorm_vec, *on_device, 0.1 if lists.unorm_vec else 0.0, *scalars)
    return (rule, *tensors, *_maps(make, rule), lists.scale1, lists.scale2, *on_device, *scalars)


def _cases(form: Format, many: bool) -> Any:
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
            yield Case(f"{rule} strided", args(form, make, rule, strided, 5, 0.1, False))
        if many:
            empty = _Lists([], [], [], [], [] if form.scale else None, [] if form.scale else None)
            yield Case("no parameters", args(form, make, "adam", empty, 5, 0.1, False))

    return make_cases


def _bad_cases(form: Format, many: bool) -> Any:
    build = _step_args if many else _update_args
    label = {field: name.format(0) for field, name in _names(form, many).items()}

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
        if form.scale:
            more = make.positive(5)
            yield BadCase("scales", args(scale1=[more]), f"{field('scale1')} has 5 elements, but a state of .* needs")
            yield BadCase("scale dtype", args(scale1=[make.bytes(3)]), f"{field('scale1')} is uint8, expected float32")
            yield BadCase("no scale2", args(scale2=None), f"{form.scale}2 is None, expected one as for state2")
            values = list(args())
            position = next(i for i, v in enumerate(values) if isinstance(v, Tensor) and v.shape == (256,))
            yield BadCase("qmap1", (*values[:position], values[position].half(), *values[position + 1 :]), "qmap1 is")
            yield BadCase(
                "no qmap2", (*values[: position + 1], None, *values[position + 2 :]), "qmap2 is None, expected"
            )
        else:
            position = 6 if not many else 8
            values = list(args())
            yield BadCase(
                "unorm", (*values[:position], 0.5, *values[position + 1 :]), "unorm_vec is None, but max_unorm"
            )
            yield BadCase("unorm size", args(unorm_vec=[make.positive(2)]), f"{field('unorm_vec')} has 2 elements")
        if many:
            values = list(args())
            step = next(i for i, v in enumerate(values) if isinstance(v, Tensor) and v.ndim == 0)
            replaced = (*values[:step], make.tensor([3.0]), *values[step + 1 :])
            yield BadCase("step shape", replaced, "step has 1 dimensions, expected 0")
            replaced = (*values[: step + 1], make.tensor(1, torch.int64), *values[step + 2 :])
            yield BadCase("lr dtype", replaced, "lr is int64, expected float32")
            yield BadCase("lengths", args(grads=[]), "grads has 0 tensors, but params has 1")
        else:
            yield BadCase("step 0", args(step=0), "step is 0, expected at least 1")

    return make_bad_cases


_RULES = """Rules: `adam` (decoupled weight decay, as AdamW), `lamb`, `ademamix` with two states; `momentum`, `lars`,
        `lion`, `rmsprop`, `adagrad` with one. All arithmetic is fp32; `p` is rounded once to its dtype. `gnorm_scale`
        multiplies the gradient; `skip_zeros` leaves elements with a zero gradient untouched."""

_COMMON = "float beta1, float beta2, float beta3, float alpha, float eps"


def _define_32bit() -> None:
    define(
        Op(
            schema="optimizer_update_32bit(str optimizer_name, Tensor g, Tensor(a!) p, Tensor(b!) state1, "
            "Tensor(c!)? state2, Tensor(d!)? unorm_vec, float max_unorm, float param_norm, "
            f"{_COMMON}, float weight_decay, int step, float lr, float gnorm_scale, bool skip_zeros=False) -> ()",
            check=_check_update_32bit,
            results=lambda *args: (),
            cases=_cases(FP32, many=False),
            bad_cases=_bad_cases(FP32, many=False),
            tolerance=STEP,
            doc=f"""One step of one parameter with fp32 state.

        g, p: alike, fp32, fp16 or bf16. state1, state2: fp32 like p (`[2, *shape]` for ademamix's state1). max_unorm:
        above 0 (lamb, lars) the update is scaled down to at most max_unorm * param_norm; unorm_vec: fp32 `[1]` receives
        the norm of the update. {_RULES}
        """,
        )
    )
    define(
        Op(
            schema="optimizer_step_32bit(str optimizer_name, Tensor[] grads, Tensor(a!)[] params, Tensor(b!)[] state1, "
            "Tensor(c!)[]? state2, Tensor(d!)[]? unorm_vec, Tensor step, Tensor lr, float max_unorm, "
            f"{_COMMON}, float weight_decay, float gnorm_scale, bool skip_zeros=False) -> ()",
            check=_check_step_32bit,
            results=lambda *args: (),
            cases=_cases(FP32, many=True),
            bad_cases=_bad_cases(FP32, many=True),
            tolerance=STEP,
            doc="""`optimizer_update_32bit` for lists of parameters, in one dispatch.

        step, lr: fp32, 0-dim, read on the device. The norm of each parameter is taken inside.
        """,
        )
    )


def _define_8bit(form: Format, scales: str) -> None:
    define(
        Op(
            schema=f"optimizer_update_{form.name}(str optimizer_name, Tensor g, Tensor(a!) p, Tensor(b!) state1, "
            f"Tensor(c!)? state2, {_COMMON}, int step, float lr, Tensor qmap1, Tensor? qmap2, "
            f"Tensor(d!) {form.scale}1, Tensor(e!)? {form.scale}2, float weight_decay, float gnorm_scale, "
            "bool skip_zeros=False) -> ()",
            check=_update_8bit_check(form),
            results=lambda *args: (),
            cases=_cases(form, many=False),
            bad_cases=_bad_cases(form, many=False),
            tolerance=STEP,
            doc=f"""One step of one parameter with 8-bit state: dequantize, update, quantize again with {scales}.

        g, p: alike, fp32, fp16 or bf16. state1, state2: uint8 like p (`[2, *shape]` for ademamix's state1). qmap1,
        qmap2: fp32 codebooks. {form.scale}1, {form.scale}2: fp32, {scales}. {_RULES}
        """,
        )
    )
    define(
        Op(
            schema=f"optimizer_step_{form.name}(str optimizer_name, Tensor[] grads, Tensor(a!)[] params, "
            f"Tensor(b!)[] state1, Tensor(c!)[]? state2, Tensor qmap1, Tensor? qmap2, Tensor(d!)[] {form.scale}1, "
            f"Tensor(e!)[]? {form.scale}2, Tensor step, Tensor lr, {_COMMON}, float weight_decay, float gnorm_scale, "
            "bool skip_zeros=False) -> ()",
            check=_step_8bit_check(form),
            results=lambda *args: (),
            cases=_cases(form, many=True),
            bad_cases=_bad_cases(form, many=True),
            tolerance=STEP,
            doc=f"""`optimizer_update_{form.name}` for lists of parameters, in one dispatch.

        step, lr: fp32, 0-dim, read on the device. qmap1, qmap2 serve all parameters.
        """,
        )
    )


_define_32bit()
_define_8bit(BLOCKWISE, f"one scale per block of {STATE_BLOCKSIZE}")
_define_8bit(PER_TENSOR, "one scale per tensor")
