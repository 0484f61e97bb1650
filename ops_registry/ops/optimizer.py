"""Optimizer steps on 32-bit and 8-bit state (arXiv:2110.02861): one parameter, or lists of them in one dispatch.

A rule (`adam`, `lion`, …) is given by name, a state format by operator: fp32; 8-bit with a scale per block of 256;
8-bit with one scale per tensor. The `optimizer_step_*` forms read `step` and `lr` on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cases import optimizer as inputs
from ..checks import Check
from ..formats import (
    BLOCKWISE,
    FLOATS,
    FP32,
    OPTIMIZER_STATES,
    PER_TENSOR,
    STATE_BLOCKSIZE,
    ParameterLists,
    StateFormat,
    argument_names,
    momenta,
)
from ..op import Op, define
from ..tolerance import Tolerance

STEP = Tolerance({torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}, codes=0.001)


def _one(tensor: Tensor | None) -> list[Tensor] | None:
    return None if tensor is None else [tensor]


def _check_lists(
    check: Check, form: StateFormat, rule: str, lists: ParameterLists, names: dict[str, str], device_of: Tensor
) -> None:
    """The rule's name, then for each parameter the dtypes, shapes and devices of all that belongs to it.

    names: field of `ParameterLists` → the argument's name in messages, with `{}` for the position in a list.
    """
    check.that(
        rule in OPTIMIZER_STATES, lambda: f"optimizer_name is {rule!r}, expected one of {', '.join(OPTIMIZER_STATES)}"
    )
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


def _check_lengths(check: Check, lists: ParameterLists, names: dict[str, str]) -> None:
    count = len(lists.params)
    for field, tensors in lists._asdict().items():
        found = count if tensors is None else len(tensors)
        name = names[field].removesuffix("[{}]")
        check.that(found == count, _sentence(f"{name} has {found} tensors, but params has {count}"))


def _check_parameter(check: Check, form: StateFormat, rule: str, of: dict[str, Tensor], label: dict[str, str]) -> None:
    """of: field of `ParameterLists` → the parameter's tensor, if any. label: the same → the argument's name."""
    p = of["params"]
    check.dtype(label["params"], p, FLOATS)
    check.dtype(label["grads"], of["grads"], (p.dtype,))
    check.shape(label["grads"], of["grads"], p.shape)
    for state, scale, lead in (("state1", "scale1", momenta(rule)), ("state2", "scale2", ())):
        shape = (*lead, *p.shape)
        if state in of:
            check.dtype(label[state], of[state], (form.dtype,))
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
    lists = ParameterLists([g], [p], [state1], _one(state2), unorm_vec=_one(unorm_vec))
    _check_lists(_update_32bit, FP32, optimizer_name, lists, argument_names(FP32, False), g)
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
    lists = ParameterLists(grads, params, state1, state2, unorm_vec=unorm_vec)
    _check_on_device(_step_32bit, step, lr)
    _check_lengths(_step_32bit, lists, argument_names(FP32, True))
    _check_lists(_step_32bit, FP32, optimizer_name, lists, argument_names(FP32, True), step)
    _check_unorm(_step_32bit, max_unorm, unorm_vec)


def _update_8bit_check(form: StateFormat) -> Any:
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
        lists = ParameterLists([g], [p], [state1], _one(state2), [scale1], _one(scale2))
        _check_lists(check, form, optimizer_name, lists, argument_names(form, False), g)
        _check_maps(check, optimizer_name, qmap1, qmap2, g)
        check.at_least("step", step, 1)

    return checked


def _step_8bit_check(form: StateFormat) -> Any:
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
        lists = ParameterLists(grads, params, state1, state2, scale1, scale2)
        _check_lengths(check, lists, argument_names(form, True))
        _check_lists(check, form, optimizer_name, lists, argument_names(form, True), step)
        _check_maps(check, optimizer_name, qmap1, qmap2, step)

    return checked


_RULES = """optimizer_name: `adam` (AdamW), `lamb`, `ademamix` with two states; `momentum`, `lars`, `lion`, `rmsprop`,
        `adagrad` with one. weight_decay: decoupled, before the update, for adam, lamb, ademamix and lion; added to the
        gradient for the others. beta1, beta2: decay of the averages (beta1 alone for momentum, lars, rmsprop); beta3,
        alpha: of AdEMAMix's slow average, and its weight. eps: added to the root. lr: the step size. gnorm_scale
        multiplies the gradient; skip_zeros leaves elements with a zero gradient untouched. All arithmetic is fp32; a
        parameter is rounded once to its dtype."""

# Nothing depends on their values but the result, and schedules change them at every step.
_UNREAD = ("beta1", "beta2", "beta3", "alpha", "eps", "weight_decay", "gnorm_scale")
_COMMON = "float beta1, float beta2, float beta3, float alpha, float eps"


def _define_32bit() -> None:
    define(
        Op(
            schema="optimizer_update_32bit(str optimizer_name, Tensor g, Tensor(a!) p, Tensor(b!) state1, "
            "Tensor(c!)? state2, Tensor(d!)? unorm_vec, float max_unorm, float param_norm, "
            f"{_COMMON}, float weight_decay, int step, float lr, float gnorm_scale, bool skip_zeros=False) -> ()",
            check=_check_update_32bit,
            results=lambda *args: (),
            cases=inputs.optimizer_cases(FP32, many=False),
            bad_cases=inputs.bad_optimizer_cases(FP32, many=False),
            tolerance=STEP,
            unread=_UNREAD,
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
            cases=inputs.optimizer_cases(FP32, many=True),
            bad_cases=inputs.bad_optimizer_cases(FP32, many=True),
            tolerance=STEP,
            unread=_UNREAD,
            doc=f"""`optimizer_update_32bit` for lists of parameters, in one dispatch.

        grads, params, state1, state2, unorm_vec: as the tensors there, one of each per parameter. step, lr: fp32,
        0-dim, read on the device. max_unorm: as there; the norm of each parameter is taken inside. {_RULES}
        """,
        )
    )


def _define_8bit(form: StateFormat, scales: str) -> None:
    define(
        Op(
            schema=f"optimizer_update_{form.name}(str optimizer_name, Tensor g, Tensor(a!) p, Tensor(b!) state1, "
            f"Tensor(c!)? state2, {_COMMON}, int step, float lr, Tensor qmap1, Tensor? qmap2, "
            f"Tensor(d!) {form.scale}1, Tensor(e!)? {form.scale}2, float weight_decay, float gnorm_scale, "
            "bool skip_zeros=False) -> ()",
            check=_update_8bit_check(form),
            results=lambda *args: (),
            cases=inputs.optimizer_cases(form, many=False),
            bad_cases=inputs.bad_optimizer_cases(form, many=False),
            tolerance=STEP,
            unread=_UNREAD,
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
            cases=inputs.optimizer_cases(form, many=True),
            bad_cases=inputs.bad_optimizer_cases(form, many=True),
            tolerance=STEP,
            unread=_UNREAD,
            doc=f"""`optimizer_update_{form.name}` for lists of parameters, in one dispatch.

        grads, params, state1, state2, {form.scale}1, {form.scale}2: as the tensors there, one of each per parameter.
        qmap1, qmap2: serve all of them. step, lr: fp32, 0-dim, read on the device. {_RULES}
        """,
        )
    )


_define_32bit()
_define_8bit(BLOCKWISE, f"one scale per block of {STATE_BLOCKSIZE}")
_define_8bit(PER_TENSOR, "one scale per tensor")
