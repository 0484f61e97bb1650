"""How a call of torch reaches a kernel.

Each operator is defined once with `torch.library`; each (operator, device) is implemented once, by an entry that
checks the arguments and calls the kernel that `choosing` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .choosing import Choice, plan_of
from .kernels import ANY_DEVICE, Kernel, add_row, remove_row
from .op import NAMESPACE, OPS, Op
from .settings import new_epoch, settings
from .signature import signature_of

__all__ = ["define_all", "register_kernels", "unregister_kernel"]

# Operators have no gradient of their own (`bnb_core.autograd` gives them one): what a kernel does is not recorded, it
# may write to a leaf, and a result is not known as a view of what the kernel had in between, which torch would refuse
# to change in place. Entering takes 0.7 µs, saved where there is nothing to record and nothing to write, but not for
# the reference, which returns views.
_unseen_by_autograd = torch._C._AutoDispatchBelowADInplaceOrView

# The choices of the signatures that passed their check, by operator and device; at most so many for each, because some
# sizes never come back.
remembered: dict[tuple[str, str], dict[tuple[Any, ...], Choice]] = {}
MOST_SIGNATURES = 1024

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
        new_epoch()


def unregister_kernel(kernel: Kernel) -> None:
    """Takes a row out of the table again; the operator then runs on the next best."""
    remove_row(kernel)
    new_epoch()


def _implement(op: Op, device: str) -> None:
    if (op.name, device) in _implemented:
        return
    key = "CompositeExplicitAutograd" if device == ANY_DEVICE else torch._C._dispatch_key_for_device(device)
    _library.impl(op.name, _entry(op, device), key)
    if op.out:
        _library.impl(f"{op.name}.out", _out_entry(op, device), key)
    _implemented.add((op.name, device))


def _entry(op: Op, device: str) -> Callable[..., Any]:
    count, defaults, mutated = len(op.parameters), op.defaults, op.mutated
    choose = _chooser(op, device, op.name, op.parsed, op.check)

    def call(*args: Any) -> Any:
        if len(args) < count:
            args = (*args, *defaults[len(args) :])
        choice, recorded = choose(args)
        kernel = choice.always or choice.plan.ask(choice, args)
        choice.plan.calls[kernel.name] += 1
        if recorded or mutated or kernel.is_reference:
            with _unseen_by_autograd():
                result = kernel.function(*args)
        else:
            result = kernel.function(*args)
        if mutated:
            _mark_written([args[i] for i in mutated])
        return result

    return _hidden_from_dynamo(call)


def _out_entry(op: Op, device: str) -> Callable[..., None]:
    count = len(op.parameters)
    choose = _chooser(op, device, f"{op.name}.out", op.parsed_out, op.check_out)

    def call(*args: Any) -> None:
        choice, _ = choose(args)
        args, outs = args[:count], args[count:]
        kernel = choice.always or choice.plan.ask(choice, args)
        choice.plan.calls[kernel.name] += 1
        with _unseen_by_autograd():
            kernel.function(*args, out=outs[0] if len(outs) == 1 else outs)
        _mark_written(outs)

    return _hidden_from_dynamo(call)


def _chooser(
    op: Op, device: str, name: str, schema: torch._C.FunctionSchema, check: Callable[..., None]
) -> Callable[[tuple[Any, ...]], tuple[Choice, bool]]:
    """The function that checks the arguments of a call; it returns the choice of kernels, and if autograd would record.

    Arguments whose signature has passed before, in this epoch, are known by it alone.
    """
    signature = signature_of(schema.arguments)
    # A signature of lists holds that of each of their tensors.
    most = MOST_SIGNATURES // 16 if any("List[Tensor]" in str(a.type) for a in schema.arguments) else MOST_SIGNATURES
    known = remembered.setdefault((name, device), {})

    def choose(args: tuple[Any, ...]) -> tuple[Choice, bool]:
        key = signature(*args)
        try:
            choice = known.get(key)
        except TypeError:  # a symbolic size
            return first(args), key[0]
        if choice is None or choice.epoch != settings.epoch:
            choice = first(args)
            if len(known) >= most:
                known.clear()
            known[key] = choice
        return choice, key[0]

    def first(args: tuple[Any, ...]) -> Choice:
        check(*args)
        args = args[: len(op.parameters)]
        return plan_of(op, args[op.device_position].device.type if device == ANY_DEVICE else device).choose(args)

    return choose


def _hidden_from_dynamo(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose frame and all below it torch.compile leaves alone when it runs an operator outside of a graph.

    It would trace the dispatcher and the kernels, and specialize on their state. `torch.compiler.disable` does the same
    for 2 µs a call and an import of the compiler; torch before 2.7 has neither of the names, and traces.
    """
    names = ("set_code_exec_strategy", "_FrameAction", "_FrameExecStrategy")
    set_strategy, action, strategy = (getattr(torch._C._dynamo.eval_frame, name, None) for name in names)
    if set_strategy and action and strategy:
        set_strategy(function.__code__, strategy(action.SKIP, action.SKIP))
    return function


def _mark_written(values: Sequence[Any]) -> None:
    """Bumps the versions of written tensors: a native kernel writes through pointers, which autograd does not see."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if not value.is_inference():
                torch.autograd.graph.increment_version(value)
        elif value is not None:
            _mark_written(value)
