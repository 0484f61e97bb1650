"""Optimizer steps: a rule of mathematics, and a state format around it (8-bit optimizers, arXiv:2110.02861).

A rule sees the gradient and its moments in fp32 and returns the update and the new moments; `RULES` lists them with the
way each takes weight decay. A state holds the moments as they are stored: `PlainState`, or `CodedState` with 8-bit
codes and one scale per block of 256 or per tensor. `update_parameter` joins the two. `step` and `lr` are 0-dim tensors
on the device, and nothing here reads a value back to the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bnb_core.ops_registry.codebooks import decision_table
from bnb_core.ops_registry.formats import STATE_BLOCKSIZE

from .blockwise import as_blocks, dequantize_blockwise, encode
from .reduction import norm

Moments = Sequence[torch.Tensor]
TensorList = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """The numbers of a step that all parameters share."""

    step: torch.Tensor
    lr: torch.Tensor
    beta1: float
    beta2: float
    beta3: float
    alpha: float
    eps: float
    weight_decay: float
    gnorm_scale: float
    skip_zeros: bool

    def bias_correction(self, beta: float) -> torch.Tensor:
        """`1 - beta ** step`, by way of `expm1`: the power itself would leave few correct digits in fp32."""
        return -torch.expm1(self.step * (math.log(beta) if beta > 0 else -math.inf))


# -- rules ------------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """What a rule decides: the parameter moves by `-lr * update`; `max_unorm` limits the norm of `measured`."""

    update: torch.Tensor
    measured: torch.Tensor
    moments: Moments


def adam(g: torch.Tensor, moments: Moments, s: Settings) -> Change:
    """Adam (arXiv:1412.6980); with `max_unorm` LAMB (arXiv:1904.00962), measured without bias correction."""
    m = s.beta1 * moments[0] + (1 - s.beta1) * g
    v = s.beta2 * moments[1] + (1 - s.beta2) * g * g
    correction1, correction2 = s.bias_correction(s.beta1), s.bias_correction(s.beta2).sqrt()
    direction = m / (v.sqrt() + s.eps * correction2)
    return Change(direction * (correction2 / correction1), direction, (m, v))


def ademamix(g: torch.Tensor, moments: Moments, s: Settings) -> Change:
    """AdEMAMix (arXiv:2409.03137): Adam with a second, slower momentum that has no bias correction."""
    fast = s.beta1 * moments[0] + (1 - s.beta1) * g
    slow = s.beta3 * moments[1] + (1 - s.beta3) * g
    v = s.beta2 * moments[2] + (1 - s.beta2) * g * g
    root = v.sqrt() / s.bias_correction(s.beta2).sqrt()
    update = (fast / s.bias_correction(s.beta1) + s.alpha * slow) / (root + s.eps)
    return Change(update, update, (fast, slow, v))


def momentum(g: torch.Tensor, moments: Moments, s: Settings) -> Change:
    """Heavy ball, not damped; the first step starts from the gradient. With `max_unorm` LARS (arXiv:1708.03888)."""
    m = torch.where(s.step == 1, g, s.beta1 * moments[0] + g)
    return Change(m, m, (m,))


def lion(g: torch.Tensor, moments: Moments, s: Settings) -> Change:
    """Lion (arXiv:2302.06675): the sign of one average, and another average for the next step."""
    update = torch.sign(s.beta1 * moments[0] + (1 - s.beta1) * g)
    return Change(update, update, (s.beta2 * moments[0] + (1 - s.beta2) * g,))


def rmsprop(g: torch.Tensor, moments: Moments, s: Settings) -> Change:
    """RMSprop (Tieleman and Hinton, 2012)."""
    v = s.beta1 * moments[0] + (1 - s.beta1) * g * g
    update = g / (v.sqrt() + s.eps)
    return Change(update, update, (v,))


def adagrad(g: torch.Tensor, moments: Moments, s: Settings) -> Change:
    """Adagrad (Duchi, Hazan and Singer, 2011)."""
    total = moments[0] + g * g
    update = g / (total.sqrt() + s.eps)
    return Change(update, update, (total,))


class Rule(NamedTuple):
    """A rule, and its weight decay: decoupled, shrinking the parameter (arXiv:1711.05101), or added to the gradient."""

    change: Callable[[torch.Tensor, Moments, Settings], Change]
    decoupled: bool


RULES = {
    "adam": Rule(adam, decoupled=True),
    "lamb": Rule(adam, decoupled=True),
    "ademamix": Rule(ademamix, decoupled=True),
    "momentum": Rule(momentum, decoupled=False),
    "lars": Rule(momentum, decoupled=False),
    "lion": Rule(lion, decoupled=True),
    "rmsprop": Rule(rmsprop, decoupled=False),
    "adagrad": Rule(adagrad, decoupled=False),
}


# -- state formats ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainState:
    """Moments as they are: [*shape], or [2, *shape] for the two of AdEMAMix's first state."""

    values: torch.Tensor

    def load(self, shape: torch.Size) -> Moments:
        return self.values.float().reshape(-1, *shape).unbind(0)

    def store(self, moments: Moments, untouched: torch.Tensor | None) -> None:
        self.values.copy_(torch.stack(tuple(moments)).view(self.values.shape))


@dataclass(frozen=True)
class CodedState:
    """Moments as 8-bit codes and scales, [2, ...] for two, each in its own blocks; blocksize None: one block."""

    codes: torch.Tensor
    code: torch.Tensor
    absmax: torch.Tensor
    blocksize: int | None

    def _parts(self, shape: torch.Size) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        codes = self.codes.reshape(-1, *shape)
        return zip(codes.unbind(0), self.absmax.reshape(codes.shape[0], -1).unbind(0), strict=True)

    def load(self, shape: torch.Size) -> Moments:
        size = self.blocksize or shape.numel()
        return [dequantize_blockwise(q, scale, self.code, size, torch.float32) for q, scale in self._parts(shape)]

    def _coded(self, moment: torch.Tensor, blocksize: int) -> tuple[torch.Tensor, torch.Tensor]:
        return encode(moment.reshape(-1), decision_table(self.code), blocksize)

    def store(self, moments: Moments, untouched: torch.Tensor | None) -> None:
        """A block in which all elements are `untouched` keeps codes and scale: to code it again could change them."""
        shape = moments[0].shape
        size = self.blocksize or shape.numel()
        coded = [self._coded(m, size) for m in moments]
        if untouched is not None:
            touched = as_blocks(~untouched.reshape(-1), size).any(dim=1)
            each = touched.repeat_interleave(size)[: untouched.numel()]
            coded = [
                (torch.where(each, q, old_q.reshape(-1)), torch.where(touched, scale, old_scale))
                for (q, scale), (old_q, old_scale) in zip(coded, self._parts(shape), strict=True)
            ]
        codes, scales = zip(*coded, strict=True)
        self.codes.copy_(torch.stack(codes).view(self.codes.shape))
        self.absmax.copy_(torch.stack(scales).view(self.absmax.shape))


State = PlainState | CodedState
Coded = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


# -- one parameter ----------------------------------------------------------------------------------------------------


class NormLimit(NamedTuple):
    """`max_unorm` times the parameter's norm, and where the norm of the update is reported."""

    largest: torch.Tensor
    unorm: torch.Tensor | None

    def factor(self, measured: torch.Tensor) -> torch.Tensor:
        """What brings the norm of `measured` down to `largest`; 1 for a parameter of norm 0, which could never move."""
        size = norm(measured)
        if self.unorm is not None:
            self.unorm.copy_(size)
        return torch.where((size > self.largest) & (self.largest > 0), self.largest / size, 1.0)


def update_parameter(
    name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    states: Sequence[State],
    s: Settings,
    limit: NormLimit | None = None,
) -> None:
    """One step: writes `p`, its states, and the norm of the update where there is a limit to it."""
    if not p.numel():
        if limit is not None:
            limit.factor(p)
        return
    rule = RULES[name]
    before = [state.load(p.shape) for state in states]
    moments = [moment for part in before for moment in part]
    old = p.float()
    gradient = g.float() * s.gnorm_scale
    if not rule.decoupled and s.weight_decay:
        gradient = gradient + s.weight_decay * old
    change = rule.change(gradient, moments, s)

    untouched = g == 0 if s.skip_zeros else None
    step_size = s.lr
    if limit is not None:
        measured = change.measured if untouched is None else change.measured.masked_fill(untouched, 0.0)
        step_size = s.lr * limit.factor(measured)
    shrunk = old * (1 - s.lr * s.weight_decay) if rule.decoupled else old
    new = shrunk - step_size * change.update
    after = list(change.moments)
    if untouched is not None:
        new = torch.where(untouched, old, new)
        after = [torch.where(untouched, m, changed) for m, changed in zip(moments, after, strict=True)]

    p.copy_(new)
    for state, part in zip(states, before, strict=True):
        state.store(after[: len(part)], untouched)
        after = after[len(part) :]


# -- the operators: lists, read on the device --------------------------------------------------------------------------


def optimizer_step_32bit(
    optimizer_name: str,
    grads: TensorList,
    params: TensorList,
    state1: TensorList,
    state2: TensorList | None,
    unorm_vec: TensorList | None,
    step: torch.Tensor,
    lr: torch.Tensor,
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
    s = Settings(step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    for i, p in enumerate(params):
        limit = None
        if max_unorm > 0:
            limit = NormLimit(max_unorm * norm(p), at(unorm_vec, i))
        update_parameter(optimizer_name, grads[i], p, plain_states(state1[i], at(state2, i)), s, limit)


def optimizer_step_8bit(
    optimizer_name: str,
    grads: TensorList,
    params: TensorList,
    state1: TensorList,
    state2: TensorList | None,
    qmap1: torch.Tensor,
    qmap2: torch.Tensor | None,
    max1: TensorList,
    max2: TensorList | None,
    step: torch.Tensor,
    lr: torch.Tensor,
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
    s = Settings(step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    for i, p in enumerate(params):
        second = at(state2, i), qmap2, at(max2, i)
        states = coded_states(None, (state1[i], qmap1, max1[i]), second)
        update_parameter(optimizer_name, grads[i], p, states, s)


# -- the operators: one parameter, numbers of the host ----------------------------------------------------------------


def optimizer_update_32bit(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    unorm_vec: torch.Tensor | None,
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
    t, rate = on_device(step, p), on_device(lr, p)
    s = Settings(t, rate, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    limit = NormLimit(on_device(max_unorm * param_norm, p), unorm_vec) if max_unorm > 0 else None
    update_parameter(optimizer_name, g, p, plain_states(state1, state2), s, limit)


def optimizer_update_8bit(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: torch.Tensor,
    qmap2: torch.Tensor | None,
    max1: torch.Tensor,
    max2: torch.Tensor | None,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """One step of one parameter with 8-bit state, one scale per tensor (one for each moment)."""
    t, rate = on_device(step, p), on_device(lr, p)
    s = Settings(t, rate, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
    states = coded_states(None, (state1, qmap1, max1), (state2, qmap2, max2))
    update_parameter(optimizer_name, g, p, states, s)


# -- the operators: 8-bit state in blocks ------------------------------------------------------------------------------


class BlockwiseSteps:
    """The two operators with one scale per block of 256; `kind` says how codes are read and written."""

    def __init__(self, kind: type[CodedState]) -> None:
        self.kind = kind

    def states(self, *parts: Coded) -> list[State]:
        return coded_states(STATE_BLOCKSIZE, *parts, kind=self.kind)

    def optimizer_step_8bit_blockwise(
        self,
        optimizer_name: str,
        grads: TensorList,
        params: TensorList,
        state1: TensorList,
        state2: TensorList | None,
        qmap1: torch.Tensor,
        qmap2: torch.Tensor | None,
        absmax1: TensorList,
        absmax2: TensorList | None,
        step: torch.Tensor,
        lr: torch.Tensor,
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
        s = Settings(step, lr, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
        for i, p in enumerate(params):
            second = at(state2, i), qmap2, at(absmax2, i)
            states = self.states((state1[i], qmap1, absmax1[i]), second)
            update_parameter(optimizer_name, grads[i], p, states, s)

    def optimizer_update_8bit_blockwise(
        self,
        optimizer_name: str,
        g: torch.Tensor,
        p: torch.Tensor,
        state1: torch.Tensor,
        state2: torch.Tensor | None,
        beta1: float,
        beta2: float,
        beta3: float,
        alpha: float,
        eps: float,
        step: int,
        lr: float,
        qmap1: torch.Tensor,
        qmap2: torch.Tensor | None,
        absmax1: torch.Tensor,
        absmax2: torch.Tensor | None,
        weight_decay: float,
        gnorm_scale: float,
        skip_zeros: bool = False,
    ) -> None:
        """One step of one parameter with 8-bit state, one scale per block."""
        t, rate = on_device(step, p), on_device(lr, p)
        s = Settings(t, rate, beta1, beta2, beta3, alpha, eps, weight_decay, gnorm_scale, skip_zeros)
        states = self.states((state1, qmap1, absmax1), (state2, qmap2, absmax2))
        update_parameter(optimizer_name, g, p, states, s)


_blockwise = BlockwiseSteps(CodedState)
optimizer_step_8bit_blockwise = _blockwise.optimizer_step_8bit_blockwise
optimizer_update_8bit_blockwise = _blockwise.optimizer_update_8bit_blockwise


def plain_states(*values: torch.Tensor | None) -> list[State]:
    return [PlainState(v) for v in values if v is not None]


def coded_states(blocksize: int | None, *states: Coded, kind: type[CodedState] = CodedState) -> list[State]:
    """States of (codes, code, scales); a state that lacks one of them is none."""
    return [
        kind(codes, code, scales, blocksize)
        for codes, code, scales in states
        if codes is not None and code is not None and scales is not None
    ]


def at(tensors: TensorList | None, i: int) -> torch.Tensor | None:
    return None if tensors is None else tensors[i]


def on_device(number: float, like: torch.Tensor) -> torch.Tensor:
    """A number of the host as a 0-dim fp32 tensor, without waiting for the device."""
    return torch.full((), number, dtype=torch.float32, device=like.device)
