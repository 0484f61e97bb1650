"""Optimizer steps with fp32 state, and with 8-bit codes and scales (8-bit optimizers, arXiv:2110.02861).

`_change` holds the rules, `_moved` what surrounds each of them; a kernel for a state format loads, moves and stores. A
rule has up to three moments: `m` in state1, `v` in state2, and AdEMAMix's `slow` in the second half of state1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnb_core.ops_registry.checks import ceil_div
from bnb_core.ops_registry.codebooks import decision_table
from bnb_core.ops_registry.formats import OPTIMIZER_STATES, STATE_BLOCKSIZE

from .blockwise import block_absmax, nearest
from .launch import on_device, rounded, share
from .reduction import largest_of, sum_of
from .tiles import tile

# Rules that are another one with a limited update.
SAME = {"lamb": "adam", "lars": "momentum"}

TensorList = Sequence[Tensor]
Number = float | Tensor

# -- the operators: one parameter, numbers of the host ----------------------------------------------------------------


def optimizer_update_32bit(
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
    """One step of one parameter with fp32 state. With `max_unorm` the caller gives the norm of the parameter."""
    numbers = _numbers(optimizer_name, step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    _update_plain(g, p, state1, state2, unorm_vec, max_unorm, max_unorm * param_norm, numbers)


def optimizer_update_8bit_blockwise(
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
    absmax1: Tensor,
    absmax2: Tensor | None,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """One step of one parameter with 8-bit state, one scale per block of 256."""
    numbers = _numbers(optimizer_name, step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    _update_blockwise(g, p, state1, state2, absmax1, absmax2, _maps(qmap1, qmap2), numbers)


def optimizer_update_8bit(
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
    max1: Tensor,
    max2: Tensor | None,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """One step of one parameter with 8-bit state, one scale per tensor (one for each moment)."""
    numbers = _numbers(optimizer_name, step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    _update_per_tensor(g, p, state1, state2, max1, max2, _maps(qmap1, qmap2), numbers)


# -- the operators: lists, read on the device -------------------------------------------------------------------------
# The kernels are launched once for each parameter.


def optimizer_step_32bit(
    optimizer_name: str,
    grads: TensorList,
    params: TensorList,
    state1: TensorList,
    state2: TensorList | None,
    unorm_vec: TensorList | None,
    step: Tensor,
    lr: Tensor,
    max_unorm: float,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """One step of all parameters with fp32 state. With `max_unorm` the norm of each parameter is taken here."""
    numbers = _numbers(optimizer_name, step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    for i, p in enumerate(params):
        _update_plain(grads[i], p, state1[i], _at(state2, i), _at(unorm_vec, i), max_unorm, None, numbers)


def optimizer_step_8bit_blockwise(
    optimizer_name: str,
    grads: TensorList,
    params: TensorList,
    state1: TensorList,
    state2: TensorList | None,
    qmap1: Tensor,
    qmap2: Tensor | None,
    absmax1: TensorList,
    absmax2: TensorList | None,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """One step of all parameters with 8-bit state, one scale per block of 256."""
    numbers = _numbers(optimizer_name, step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    maps = _maps(qmap1, qmap2)
    for i, p in enumerate(params):
        _update_blockwise(grads[i], p, state1[i], _at(state2, i), absmax1[i], _at(absmax2, i), maps, numbers)


def optimizer_step_8bit(
    optimizer_name: str,
    grads: TensorList,
    params: TensorList,
    state1: TensorList,
    state2: TensorList | None,
    qmap1: Tensor,
    qmap2: Tensor | None,
    max1: TensorList,
    max2: TensorList | None,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """One step of all parameters with 8-bit state, one scale per tensor (one for each moment)."""
    numbers = _numbers(optimizer_name, step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    maps = _maps(qmap1, qmap2)
    for i, p in enumerate(params):
        _update_per_tensor(grads[i], p, state1[i], _at(state2, i), max1[i], _at(max2, i), maps, numbers)


# -- arguments of the kernels -----------------------------------------------------------------------------------------


def _at(tensors: TensorList | None, i: int) -> Tensor | None:
    return None if tensors is None else tensors[i]


def _numbers(
    name: str,
    step: Number,
    lr: Number,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool,
) -> dict[str, Any]:
    """What the kernels take by name. Step, rate and bias corrections are numbers of the host, or 0-dim tensors."""
    rule = SAME.get(name, name)
    corrected = OPTIMIZER_STATES[rule] == 2
    correction2 = _bias_correction(beta2, step) if corrected else step
    return {
        "step": float(step) if isinstance(step, int) else step,
        "lr": lr,
        "correction1": _bias_correction(beta1, step) if corrected else step,
        "root2": correction2.sqrt() if isinstance(correction2, Tensor) else math.sqrt(correction2),
        "beta1": beta1,
        "rest1": 1 - beta1,
        "beta2": beta2,
        "rest2": 1 - beta2,
        "beta3": beta3,
        "rest3": 1 - beta3,
        "alpha": alpha,
        "eps": eps,
        "weight_decay": weight_decay,
        "gnorm_scale": gnorm_scale,
        "ON_DEVICE": isinstance(step, Tensor),
        "RULE": rule,
        "SKIP_ZEROS": skip_zeros,
        "enable_fp_fusion": False,
    }


def _bias_correction(beta: float, step: Number) -> Number:
    """`1 - beta ** step`, by way of `expm1`: the power itself would leave few correct digits in fp32."""
    logarithm = math.log(beta) if beta > 0 else -math.inf
    return -torch.expm1(step * logarithm) if isinstance(step, Tensor) else -math.expm1(step * logarithm)


def _maps(qmap1: Tensor, qmap2: Tensor | None) -> dict[str, Any]:
    """The codebooks, as the kernels take them by name."""
    tables = [(code.contiguous(), *decision_table(code), code.numel()) for code in (qmap1, qmap2) if code is not None]
    named: dict[str, Any] = {
        f"{name}{i}": value
        for i, table in ((1, tables[0]), (2, tables[-1]))
        for name, value in zip(("qmap", "boundaries", "order", "entries"), table, strict=True)
    }
    return named | {"STEPS": (max(named["entries1"], named["entries2"]) - 1).bit_length()}


@contextmanager
def _contiguous(*tensors: Tensor | None) -> Iterator[list[Tensor]]:
    """The tensors to write to, by way of a copy where one is not contiguous; the first stands in for those missing."""
    first = tensors[0]
    assert first is not None
    given = [first if t is None else t for t in tensors]
    work = [t.contiguous() for t in given]
    yield work
    for tensor, written in zip(tensors, work, strict=True):
        if tensor is not None and not tensor.is_contiguous():
            tensor.copy_(written)


# -- one parameter ----------------------------------------------------------------------------------------------------


def _update_plain(
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    unorm_vec: Tensor | None,
    max_unorm: float,
    largest: float | None,
    numbers: dict[str, Any],
) -> None:
    """`largest` is what the norm of the update may be, None for `max_unorm` times the parameter's norm."""
    n = p.numel()
    launch = tile("optimizer.plain", p.device)
    grid = (triton.cdiv(n, launch["SIZE"]),)
    # Squares of the update and of the parameter, summed by each program; then the factor of the limit.
    partials, factor = (
        torch.empty(size, dtype=torch.float32, device=p.device) if max_unorm > 0 else p for size in ((2, *grid), ())
    )
    with _contiguous(p, state1, state2) as (out, first, second), on_device(p):
        args = g.contiguous(), out, first, second, partials, factor, n
        if max_unorm > 0:
            if n:
                _plain[grid](*args, **numbers, MEASURE=True, LIMITED=False, **launch)
            unorm = factor if unorm_vec is None else unorm_vec
            own = largest is None
            _limit[(1,)](partials, unorm, factor, *grid, max_unorm if largest is None else largest, OWN=own)
        if n:
            _plain[grid](*args, **numbers, MEASURE=False, LIMITED=max_unorm > 0, **launch)


def _update_blockwise(
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    absmax1: Tensor,
    absmax2: Tensor | None,
    maps: dict[str, Any],
    numbers: dict[str, Any],
) -> None:
    n = p.numel()
    if not n:
        return
    blocks = ceil_div(n, STATE_BLOCKSIZE)
    launch = tile("optimizer.coded", p.device)
    with _contiguous(p, state1, state2, absmax1, absmax2) as (out, first, second, scale1, scale2), on_device(p):
        _coded[(triton.cdiv(blocks, launch["ROWS"]),)](
            *(g.contiguous(), out, first, second, scale1, scale2, scale1, n, blocks),
            **maps,
            **numbers,
            **launch,
            STAGE="blocks",
            BLOCK=STATE_BLOCKSIZE,
        )


def _update_per_tensor(
    g: Tensor,
    p: Tensor,
    state1: Tensor,
    state2: Tensor | None,
    max1: Tensor,
    max2: Tensor | None,
    maps: dict[str, Any],
    numbers: dict[str, Any],
) -> None:
    n = p.numel()
    if not n:
        return
    blocks = ceil_div(n, STATE_BLOCKSIZE)
    launch = tile("optimizer.coded", p.device)
    grid = (triton.cdiv(blocks, launch["ROWS"]),)
    # Of each moment the largest magnitude, by program and then over all; in the last row whether one is touched.
    partials = torch.empty(4, *grid, dtype=torch.float32, device=p.device)
    scales, before = torch.empty(2, 4, dtype=torch.float32, device=p.device).unbind()
    with _contiguous(p, state1, state2, max1, max2) as (out, first, second, scale1, scale2), on_device(p):
        args = g.contiguous(), out, first, second
        common = {**maps, **numbers, **launch, "BLOCK": STATE_BLOCKSIZE}
        _coded[grid](*args, scale1, scale2, partials, n, blocks, **common, STAGE="measure")
        _scales[(1,)](partials, scales, before, scale1, scale2, *grid, TWO=max2 is not None, SLOW=max1.numel() == 2)
        _coded[grid](*args, before, before[2:], scales, n, blocks, **common, STAGE="encode")


# -- rules ------------------------------------------------------------------------------------------------------------


@triton.jit
def _change(
    g, m, v, slow, step, correction1, root2, beta1, rest1, beta2, rest2, beta3, rest3, alpha, eps, RULE: tl.constexpr,
):  # fmt: skip
    """The update, that of which `max_unorm` limits the norm, and the moments; the parameter moves by -lr * update."""
    update, measured = g, g
    if RULE == "adam":
        m = beta1 * m + rest1 * g
        v = beta2 * v + rest2 * g * g
        measured = tl.div_rn(m, tl.sqrt_rn(v) + eps * root2)
        update = measured * tl.div_rn(root2, correction1)
    elif RULE == "ademamix":
        m = beta1 * m + rest1 * g
        slow = beta3 * slow + rest3 * g
        v = beta2 * v + rest2 * g * g
        update = tl.div_rn(_over(m, correction1) + alpha * slow, _over(tl.sqrt_rn(v), root2) + eps)
        measured = update
    elif RULE == "momentum":
        m = tl.where(step == 1, g, beta1 * m + g)
        update, measured = m, m
    elif RULE == "lion":
        average = beta1 * m + rest1 * g
        update = (average > 0).to(tl.float32) - (average < 0).to(tl.float32)
        measured = update
        m = beta2 * m + rest2 * g
    else:
        if RULE == "rmsprop":
            m = beta1 * m + rest1 * g * g
        else:
            tl.static_assert(RULE == "adagrad")
            m = m + g * g
        update = tl.div_rn(g, tl.sqrt_rn(m) + eps)
        measured = update
    return update, measured, m, v, slow


@triton.jit
def _over(x, number):
    return tl.div_rn(x, tl.zeros_like(x) + number)


@triton.jit
def _moved(
    g, old, m, v, slow, factor, step, lr, correction1, root2,
    beta1, rest1, beta2, rest2, beta3, rest3, alpha, eps, weight_decay, gnorm_scale,
    RULE: tl.constexpr, SKIP_ZEROS: tl.constexpr,
):  # fmt: skip
    """The parameter after the step, the update that is measured, and the moments, all in fp32."""
    DECOUPLED: tl.constexpr = RULE == "adam" or (RULE == "ademamix" or RULE == "lion")  # Triton 3.2 takes no chain
    gradient = g * gnorm_scale
    shrunk = old
    if DECOUPLED:
        shrunk = old * (1 - lr * weight_decay)
    else:
        gradient = tl.where(weight_decay != 0, gradient + weight_decay * old, gradient)
    update, measured, new_m, new_v, new_slow = _change(
        gradient, m, v, slow, step, correction1, root2,
        beta1, rest1, beta2, rest2, beta3, rest3, alpha, eps, RULE,
    )  # fmt: skip
    new = shrunk - (lr * factor) * update
    if SKIP_ZEROS:
        untouched = g == 0
        new = tl.where(untouched, old, new)
        measured = tl.where(untouched, 0.0, measured)
        new_m = tl.where(untouched, m, new_m)
        new_v = tl.where(untouched, v, new_v)
        new_slow = tl.where(untouched, slow, new_slow)
    return new, measured, new_m, new_v, new_slow


@triton.jit
def _number(x, ON_DEVICE: tl.constexpr):
    if ON_DEVICE:
        return tl.load(x)
    else:
        return x


# -- fp32 state -------------------------------------------------------------------------------------------------------


@triton.jit
def _plain(
    g, p, state1, state2, partials, limit, n, step, lr, correction1, root2,
    beta1, rest1, beta2, rest2, beta3, rest3, alpha, eps, weight_decay, gnorm_scale,
    ON_DEVICE: tl.constexpr, RULE: tl.constexpr, SKIP_ZEROS: tl.constexpr,
    MEASURE: tl.constexpr, LIMITED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    TWO: tl.constexpr = RULE == "adam" or RULE == "ademamix"
    start, count = share(n, SIZE)
    element = tl.arange(0, SIZE)
    exist = element < count
    g, p, state1, state2 = g + start, p + start, state1 + start, state2 + start
    gradient = tl.load(g + element, mask=exist, other=0.0).to(tl.float32)
    old = tl.load(p + element, mask=exist, other=0.0).to(tl.float32)
    m = tl.load(state1 + element, mask=exist, other=0.0)
    v, slow = m, m
    if TWO:
        v = tl.load(state2 + element, mask=exist, other=0.0)
    if RULE == "ademamix":
        slow = tl.load(state1 + n + element, mask=exist, other=0.0)
    factor = 1.0
    if LIMITED:
        factor = tl.load(limit)
    new, measured, m, v, slow = _moved(
        gradient, old, m, v, slow, factor,
        _number(step, ON_DEVICE), _number(lr, ON_DEVICE), _number(correction1, ON_DEVICE), _number(root2, ON_DEVICE),
        beta1, rest1, beta2, rest2, beta3, rest3, alpha, eps, weight_decay, gnorm_scale, RULE, SKIP_ZEROS,
    )  # fmt: skip
    if MEASURE:
        measured = tl.where(exist, measured, 0.0)
        tl.store(partials + tl.program_id(0), tl.sum(measured * measured, 0))
        tl.store(partials + tl.num_programs(0) + tl.program_id(0), tl.sum(old * old, 0))
    else:
        tl.store(p + element, rounded(new, p.dtype.element_ty), mask=exist)
        tl.store(state1 + element, m, mask=exist)
        if TWO:
            tl.store(state2 + element, v, mask=exist)
        if RULE == "ademamix":
            tl.store(state1 + n + element, slow, mask=exist)


@triton.jit
def _limit(partials, unorm, factor, count, largest, OWN: tl.constexpr):
    """The norm of the update, and what brings it down; 1 for a parameter of norm 0, which could never move."""
    size = tl.sqrt_rn(sum_of(partials, count))
    if OWN:
        largest = largest * tl.sqrt_rn(sum_of(partials + count, count))
    tl.store(unorm, size)
    limited = (size > largest) & (tl.zeros_like(size) < largest)  # a tensor also where `largest` is a number
    tl.store(factor, tl.where(limited, tl.div_rn(largest, tl.where(limited, size, 1.0)), 1.0))


# -- 8-bit state ------------------------------------------------------------------------------------------------------


@triton.jit
def _decoded(codes, element, exist, qmap, entries, scale):
    found = tl.load(codes + element, mask=exist, other=0).to(tl.int32)
    return tl.load(qmap + found, mask=exist & (found < entries), other=tl.where(exist, float("nan"), 0.0)) * scale


@triton.jit
def _encode(
    x, codes, absmax, new_scale, element, exist, block, touched, boundaries, order, entries,
    PER_TENSOR: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Codes of a moment, and the scales where each block has its own."""
    if PER_TENSOR:
        scale = tl.load(new_scale + tl.zeros_like(block))
        scales = scale > 0
    else:
        scale, scales = block_absmax(x, exist)
    t = tl.where(scales[:, None], tl.div_rn(x, tl.where(scales, scale, 1.0)[:, None]), 0.0)
    tl.store(codes + element, nearest(t, boundaries, order, entries, STEPS), mask=exist & touched[:, None])
    if not PER_TENSOR:
        tl.debug_barrier()  # every thread has read the old scales
        tl.store(absmax + block, scale, mask=touched)


@triton.jit
def _largest(x, exist, partial):
    """The largest magnitude of a program, Inf where one is no finite number."""
    magnitude = tl.where(exist, tl.abs(x), 0.0)
    tl.store(partial, tl.max(tl.max(tl.where(magnitude < float("inf"), magnitude, float("inf")), 1), 0))


@triton.jit
def _coded(
    g, p, state1, state2, absmax1, absmax2, measures, n, blocks,
    qmap1, boundaries1, order1, entries1, qmap2, boundaries2, order2, entries2, step, lr, correction1, root2,
    beta1, rest1, beta2, rest2, beta3, rest3, alpha, eps, weight_decay, gnorm_scale,
    ON_DEVICE: tl.constexpr, RULE: tl.constexpr, SKIP_ZEROS: tl.constexpr,
    STAGE: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """STAGE: `blocks`, each with its scale; or with one scale `measure`, which writes `measures`, then `encode`."""
    TWO: tl.constexpr = RULE == "adam" or RULE == "ademamix"
    PER_TENSOR: tl.constexpr = STAGE != "blocks"
    start, count = share(n, ROWS * BLOCK)
    block = tl.arange(0, ROWS)
    element = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    exist = element < count
    full = block * BLOCK < count
    g, p, state1, state2 = g + start, p + start, state1 + start, state2 + start
    # Where the scale of a block is, and that of AdEMAMix's slow moment behind it.
    place, behind = block, blocks
    if PER_TENSOR:
        place, behind = tl.zeros_like(block), 1
    else:
        absmax1, absmax2 = absmax1 + start // BLOCK, absmax2 + start // BLOCK
    gradient = tl.load(g + element, mask=exist, other=0.0).to(tl.float32)
    old = tl.load(p + element, mask=exist, other=0.0).to(tl.float32)
    m = _decoded(state1, element, exist, qmap1, entries1, tl.load(absmax1 + place, mask=full, other=0.0)[:, None])
    v, slow = m, m
    if TWO:
        v = _decoded(state2, element, exist, qmap2, entries2, tl.load(absmax2 + place, mask=full, other=0.0)[:, None])
    if RULE == "ademamix":
        scale = tl.load(absmax1 + behind + place, mask=full, other=0.0)[:, None]
        slow = _decoded(state1 + n, element, exist, qmap1, entries1, scale)
    new, _, m, v, slow = _moved(
        gradient, old, m, v, slow, 1.0,
        _number(step, ON_DEVICE), _number(lr, ON_DEVICE), _number(correction1, ON_DEVICE), _number(root2, ON_DEVICE),
        beta1, rest1, beta2, rest2, beta3, rest3, alpha, eps, weight_decay, gnorm_scale, RULE, SKIP_ZEROS,
    )  # fmt: skip

    # A block in which nothing is touched keeps codes and scale: to code it again could change them.
    touched = full
    if SKIP_ZEROS:
        touched = tl.max((exist & (gradient != 0)).to(tl.int32), 1) > 0
    if STAGE == "measure":
        partial = measures + tl.program_id(0)
        rows = tl.num_programs(0)
        _largest(m, exist, partial)
        _largest(v, exist, partial + rows)
        _largest(slow, exist, partial + 2 * rows)
        tl.store(partial + 3 * rows, tl.max(touched.to(tl.float32), 0))
    else:
        if PER_TENSOR:
            touched = tl.load(measures + 3 + tl.zeros_like(block)) > 0
        tl.store(p + element, rounded(new, p.dtype.element_ty), mask=exist)
        _encode(
            m, state1, absmax1, measures, element, exist, block, touched,
            boundaries1, order1, entries1, PER_TENSOR, STEPS,
        )  # fmt: skip
        if TWO:
            _encode(
                v, state2, absmax2, measures + 1, element, exist, block, touched,
                boundaries2, order2, entries2, PER_TENSOR, STEPS,
            )  # fmt: skip
        if RULE == "ademamix":
            _encode(
                slow, state1 + n, absmax1 + behind, measures + 2, element, exist, block, touched,
                boundaries1, order1, entries1, PER_TENSOR, STEPS,
            )  # fmt: skip


@triton.jit
def _scales(partials, scales, before, max1, max2, count, TWO: tl.constexpr, SLOW: tl.constexpr):
    """From what each program measured the new scales, of all moments; `before` keeps the old ones."""
    touched = largest_of(partials + 3 * count, count)
    tl.store(scales + 3, touched)
    _scale(partials, scales, before, max1, count, touched > 0)
    if TWO:
        _scale(partials + count, scales + 1, before + 2, max2, count, touched > 0)
    if SLOW:
        _scale(partials + 2 * count, scales + 2, before + 1, max1 + 1, count, touched > 0)


@triton.jit
def _scale(partials, scale, before, kept, count, touched):
    largest = largest_of(partials, count)
    largest = tl.where(largest < float("inf"), largest, float("nan"))
    tl.store(scale, largest)
    tl.store(before, tl.load(kept))
    tl.store(kept, largest, mask=touched)
