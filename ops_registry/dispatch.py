"""How a call finds its kernel.

Each operator is defined once with `torch.library`; each (operator, device) is implemented once, by an entry that
checks the arguments and calls the kernel that its plan names. A plan is a choice worked out from the kernel table for
the arguments' limited values (dtypes, block size, …) and kept until the epoch changes: by a registration, by
`force()` or by `fallback()`. Choosing happens in the call, so that compiled and exported programs obey both.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .kernels import ANY_DEVICE, Kernel, add_row, kernels_for, limited_value, remove_row, rows, show
from .op import NAMESPACE, OPS, Op

__all__ = [
    "FallbackError",
    "FallbackWarning",
    "check_forced_names",
    "define_all",
    "devices",
    "explain",
    "fallback",
    "force",
    "kernel_counts",
    "register_kernels",
    "reset_kernel_counts",
    "unregister_kernel",
]

FALLBACK_POLICIES = ("error", "warn", "allow")


class FallbackWarning(UserWarning):
    """An operator ran on the reference on an accelerator."""


class FallbackError(RuntimeError):
    """An operator has no kernel of its own for these inputs, and the fallback policy is `error`."""


class _State:
    """What `force()` and `fallback()` set for the whole process."""

    epoch = 0
    forced: tuple[str, ...] = tuple(n.strip() for n in os.environ.get("BNB_CORE_FORCE", "").split(",") if n.strip())
    policy: str = os.environ.get("BNB_CORE_FALLBACK", "warn")
    warned: set[tuple[str, str, str]] = set()


if _State.policy not in FALLBACK_POLICIES:
    raise ValueError(f"BNB_CORE_FALLBACK is {_State.policy!r}, expected one of {', '.join(FALLBACK_POLICIES)}")


# -- choosing ------------------------------------------------------------------------------------------------------


@dataclass
class _Choice:
    """The kernels that may run for one combination of limited values, best first; the last one always may."""

    kernels: list[Kernel]
    refused: list[tuple[Kernel, str]]


@dataclass
class _Choices:
    """The choices of one epoch, by the values of the arguments that any row limits."""

    epoch: int
    keys: tuple[tuple[int, str | None], ...]
    found: dict[tuple[Any, ...], _Choice] = field(default_factory=dict)


@dataclass
class _Plan:
    """The choices of one (operator, device), and how often each kernel ran."""

    op: Op
    device: str
    choices: _Choices = field(default_factory=lambda: _Choices(-1, ()))
    calls: dict[str, int] = field(default_factory=dict)

    def kernel(self, args: tuple[Any, ...]) -> Kernel:
        choices = self.choices  # replaced as a whole, so that threads never mix two epochs
        if choices.epoch != _State.epoch:
            table = kernels_for(self.op.name, self.device)
            keys = dict.fromkeys(self.op.position(key) for kernel in table for key in kernel.limits)
            choices = self.choices = _Choices(_State.epoch, tuple(keys))
        key = tuple([limited_value(position, args) for position in choices.keys])
        choice = choices.found.get(key)
        if choice is None:
            choice = choices.found[key] = self._choose(args)
        for kernel in choice.kernels:
            if kernel.refusal is None or (reason := kernel.refusal(*args)) is None:
                self.calls[kernel.name] = self.calls.get(kernel.name, 0) + 1
                if kernel.is_reference and self.device != "cpu" and kernel.name not in _State.forced:
                    self._fall_back(choice, args)
                return kernel
            if kernel.name in _State.forced:
                self._refuse_forced(kernel, reason)
        raise NotImplementedError(f"{NAMESPACE}::{self.op.name} has no kernel for device {self.device}")

    def _choose(self, args: tuple[Any, ...]) -> _Choice:
        forced = _forced_kernel(self.op.name, self.device)
        candidates = kernels_for(self.op.name, self.device) if forced is None else (forced,)
        choice = _Choice([], [])
        for kernel in candidates:
            reason = kernel.outside_limits(args)
            if reason is None:
                choice.kernels.append(kernel)
                if kernel.refusal is None:
                    break
            elif forced is not None:
                self._refuse_forced(kernel, reason)
            else:
                choice.refused.append((kernel, reason))
        return choice

    def _refuse_forced(self, kernel: Kernel, reason: str) -> None:
        raise RuntimeError(f"{NAMESPACE}::{self.op.name}: the forced kernel {kernel.name} refuses: {reason}")

    def _fall_back(self, choice: _Choice, args: tuple[Any, ...]) -> None:
        if _State.policy == "allow":
            return
        refusals = [f"{kernel.name}: {reason}" for kernel, reason in choice.refused]
        refusals += [f"{k.name}: {k.refusal(*args)}" for k in choice.kernels if k.refusal is not None]
        reason = "; ".join(refusals) or f"no kernel is registered for device {self.device}"
        sentence = f"{NAMESPACE}::{self.op.name} on {self.device} runs on the slow reference: {reason}"
        if _State.policy == "error":
            raise FallbackError(f"{sentence} (the fallback policy is 'error')")
        if (self.op.name, self.device, reason) not in _State.warned:
            _State.warned.add((self.op.name, self.device, reason))
            warnings.warn(sentence, FallbackWarning, stacklevel=2)


_plans: dict[tuple[str, str], _Plan] = {}


def _plan(op: Op, device: str) -> _Plan:
    return _plans.setdefault((op.name, device), _Plan(op, device))


def _forced_kernel(op: str, device: str) -> Kernel | None:
    """The row that `force` selects for an operator on a device, if it has one of a forced name."""
    return next((k for name in _State.forced for k in kernels_for(op, device) if k.name == name), None)


# -- registration with torch ----------------------------------------------------------------------------------------

# Operators have no gradient of their own (`bnb_core.autograd` gives them one), so what a kernel does is not recorded.
_below_autograd = torch._C._AutoDispatchBelowAutograd

_library = torch.library.Library(NAMESPACE, "DEF")
_implemented: set[tuple[str, str]] = set()


def define_all() -> None:
    """Defines every operator of `OPS` with torch: schemas and fakes. Kernels come with `register_kernels`."""
    tags = (torch.Tag.pt2_compliant_tag,)
    for op in OPS.values():
        _library.define(op.schema, tags=tags)
        torch.library.register_fake(f"{NAMESPACE}::{op.name}", op.fake, lib=_library)
        if op.out:
            _library.define(op.out_schema, tags=tags)
            torch.library.register_fake(f"{NAMESPACE}::{op.name}.out", op.check_out, lib=_library)


def register_kernels(kernels: Sequence[Kernel]) -> None:
    """Adds rows to the kernel table, all or none, and implements their (operator, device) where that is new.

    Raises ValueError as `add_row` does, RuntimeError for a device type that torch does not know.
    """
    added: list[Kernel] = []
    try:
        for kernel in kernels:
            add_row(kernel)
            added.append(kernel)
            _implement(OPS[kernel.op], kernel.device)
    except Exception:
        for kernel in added:
            remove_row(kernel)
        raise
    finally:
        _State.epoch += 1


def unregister_kernel(kernel: Kernel) -> None:
    """Takes a row out of the table again; the operator then runs on the next best."""
    remove_row(kernel)
    _State.epoch += 1


def _implement(op: Op, device: str) -> None:
    if (op.name, device) in _implemented:
        return
    key = "CompositeExplicitAutograd" if device == ANY_DEVICE else torch._C._dispatch_key_for_device(device)
    _library.impl(op.name, _entry(op, device), key)
    if op.out:
        _library.impl(f"{op.name}.out", _out_entry(op, device), key)
    _implemented.add((op.name, device))


def _plan_finder(op: Op, device: str) -> Callable[[tuple[Any, ...]], _Plan]:
    """The plan for given arguments: fixed for a device, looked up by their device for the reference's entry."""
    if device == ANY_DEVICE:
        return lambda args: _plan(op, args[op.device_position].device.type)
    plan = _plan(op, device)
    return lambda args: plan


def _entry(op: Op, device: str) -> Callable[..., Any]:
    check, defaults, count, mutated = op.check, op.defaults, len(op.parameters), op.mutated
    find = _plan_finder(op, device)

    def call(*args: Any) -> Any:
        if len(args) < count:
            args = (*args, *defaults[len(args) :])
        check(*args)
        kernel = find(args).kernel(args).function
        with _below_autograd():
            result = kernel(*args)
        if mutated:
            _mark_written([args[i] for i in mutated])
        return result

    return _hidden_from_dynamo(call)


def _out_entry(op: Op, device: str) -> Callable[..., None]:
    count = len(op.parameters)
    find = _plan_finder(op, device)

    def call(*args: Any) -> None:
        op.check_out(*args)
        args, outs = args[:count], args[count:]
        kernel = find(args).kernel(args).function
        with _below_autograd():
            kernel(*args, out=outs[0] if len(outs) == 1 else outs)
        _mark_written(outs)

    return _hidden_from_dynamo(call)


def _hidden_from_dynamo(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose frame and all below it torch.compile leaves alone when it runs an operator outside of a graph.

    It would trace the dispatcher and the kernels, and specialize on their state. `torch.compiler.disable` does the same
    for 2 µs a call and an import of the compiler; torch before 2.7 has neither of the names, and traces.
    """
    frames = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    return function


def _mark_written(values: Sequence[Any]) -> None:
    """Bumps the versions of written tensors: a native kernel writes through pointers, which autograd does not see."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if not value.is_inference():
                torch.autograd.graph.increment_version(value)
        elif value is not None:
            _mark_written(value)


# -- what people set and ask ------------------------------------------------------------------------------------------


def _refuse_in_compiled_region(what: str) -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError(f"bnb_core.{what}() cannot be entered inside a compiled region; enter it around the call")


@contextmanager
def _set(attribute: str, value: Any) -> Iterator[None]:
    before = getattr(_State, attribute)
    setattr(_State, attribute, value)
    _State.epoch += 1
    try:
        yield
    finally:
        setattr(_State, attribute, before)
        _State.epoch += 1


class _Setting:
    """A context manager that refuses to be entered while torch traces, where the compiled program would lose it."""

    def __init__(self, what: str, attribute: str, value: Any) -> None:
        _refuse_in_compiled_region(what)
        self._context = _set(attribute, value)

    def __enter__(self) -> None:
        self._context.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)


def force(*names: str) -> _Setting:
    """Context manager: operators that have a kernel of one of these names run it, for the whole process.

    `"reference"` forces the reference on every device. An operator without a kernel of a forced name chooses as usual;
    a forced kernel that refuses its inputs raises RuntimeError with its reason. `BNB_CORE_FORCE` (names separated by
    commas) does the same from the start of the process.

    Raises ValueError for a name that no kernel has, RuntimeError inside a compiled region.
    """
    unknown_names(names)
    return _Setting("force", "forced", names)


def fallback(policy: str) -> _Setting:
    """Context manager: what happens when an operator on an accelerator has no kernel of its own for its inputs.

    `"error"` raises FallbackError, `"warn"` (the default) runs the reference with one FallbackWarning per (operator,
    device, reason), `"allow"` runs it silently. `BNB_CORE_FALLBACK` sets the policy of the process.

    Raises ValueError for another policy, RuntimeError inside a compiled region.
    """
    if policy not in FALLBACK_POLICIES:
        raise ValueError(f"policy is {policy!r}, expected one of {', '.join(FALLBACK_POLICIES)}")
    return _Setting("fallback", "policy", policy)


def unknown_names(names: Sequence[str], hint: str = "") -> None:
    """Raises ValueError for kernel names that no row has; `hint` ends the sentence."""
    known = dict.fromkeys(kernel.name for kernel in rows())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no kernel is named {', '.join(unknown)}; known are {', '.join(known)}{hint}")


def check_forced_names(hint: str) -> None:
    """Raises ValueError where `BNB_CORE_FORCE` holds a name that no kernel has. Called when all backends are loaded."""
    unknown_names(_State.forced, hint)


def kernel_counts() -> dict[tuple[str, str, str], int]:
    """How often each kernel ran since the start or `reset_kernel_counts()`: (operator, device type, kernel) → calls."""
    return {(op, device, name): n for (op, device), plan in _plans.items() for name, n in plan.calls.items()}


def reset_kernel_counts() -> None:
    """Sets all counts of `kernel_counts()` to zero."""
    for plan in _plans.values():
        plan.calls.clear()


def devices() -> tuple[str, ...]:
    """Device types that have kernels of their own."""
    return tuple(dict.fromkeys(kernel.device for kernel in rows() if not kernel.is_reference))


def explain(op: str, *args: Any, device: str | None = None) -> None:
    """Prints the kernels that can serve an operator, which one runs, and why each other does not.

    op: name of the operator.
    args: the arguments of a call; the check runs on them, no kernel does. Without arguments the declared limits are
        printed, for every device that has kernels or for `device`.

    Raises ValueError for an unknown operator, and what the operator's check raises for bad arguments.
    """
    if op not in OPS:
        raise ValueError(f"there is no operator {op!r}; there are {', '.join(OPS)}")
    print("\n".join(_explain_call(OPS[op], args) if args else _explain_table(OPS[op], device)))  # noqa: T201


def _explain_table(op: Op, device: str | None) -> Iterator[str]:
    yield f"{NAMESPACE}::{op.schema}"
    own = [device] if device else [d for d in devices() if not kernels_for(op.name, d)[0].is_reference]
    rest = [] if device else [(ANY_DEVICE, "on any other device" if own else "on every device")]
    for place, title in [(d, f"on {d}, best first") for d in own] + rest:
        yield title
        for kernel in kernels_for(op.name, place):
            limits = "; ".join(f"{key}: {', '.join(map(show, allowed))}" for key, allowed in kernel.limits.items())
            yield f"  {kernel.name:<16} {limits or 'no limits'}  ({kernel.origin})"


def _explain_call(op: Op, args: tuple[Any, ...]) -> Iterator[str]:
    args = op.complete(args)
    op.check(*args)
    device = args[op.device_position].device.type
    shown = (f"{name} {_describe(value)}" for name, value in zip(op.parameters, args, strict=True) if value is not None)
    yield f"{NAMESPACE}::{op.name} on {device}: {', '.join(shown)}"
    forced = _forced_kernel(op.name, device)
    chosen: Kernel | None = None
    for kernel in kernels_for(op.name, device):
        reason = kernel.outside_limits(args) or (kernel.refusal(*args) if kernel.refusal is not None else None)
        if forced is not None and kernel is not forced:
            reason = f"{forced.name} is forced"
        elif reason is None and chosen is not None:
            reason = f"{chosen.name} comes first"
        if reason is None:
            chosen = kernel
        yield f"  {'->' if reason is None else '  '} {kernel.name:<16} {'runs' if reason is None else reason}"


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{show(value.dtype)}{list(value.shape)}"
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        return f"{len(value)} x {_describe(value[0])}"
    return show(value)
