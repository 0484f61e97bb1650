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
# kernels in torch's operations, which return views.
_unseen_by_autograd = torch._C._AutoDispatchBelowADInplaceOrView

# The choices of the signatures that passed their check, by operator and device; at most so many for each, because some
# sizes never come back.
remembered: dict[tuple[str, str], dict[tuple[Any, ...], Choice]] = {}
MOST_SIGNATURES = 1024

# What all calls of a signature run until the epoch (`settings.epoch`) changes: the counts to add each of them to, and
# the name of the kernel, its key there.
Settled = tuple[dict[str, int], str]

# What a backend may put before the Python of this module: `shortcut(op, call, settled)` returns what torch is to call
# in the place of `call`. It may answer the calls of a signature of which `settled(*args)` knows a kernel, one of the
# same backend; all others are for `call`, which checks.
Shortcut = Callable[[str, Callable[..., Any], Callable[..., "Settled | None"]], Callable[..., Any]]

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


def register_kernels(kernels: Sequence[Kernel], shortcut: Shortcut | None = None) -> None:
    """Adds rows to the kernel table, all or none, and implements their (operator, device) where that is new.

    shortcut: see `Shortcut`; of the first backend that has rows for an (operator, device).

    Raises ValueError as `add_row` does, RuntimeError for a device type that torch does not know.
    """
    added: list[Kernel] = []
    try:
        for kernel in kernels:
            add_row(kernel)
            added.append(kernel)
            _implement(OPS[kernel.op], kernel, shortcut)
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


def _implement(op: Op, first: Kernel, shortcut: Shortcut | None) -> None:
    device = first.device
    if (op.name, device) in _implemented:
        return
    key = "CompositeExplicitAutograd" if device == ANY_DEVICE else torch._C._dispatch_key_for_device(device)
    call, settled = _entry(op, first, op.name, op.parsed, op.check, op.mutated, _run)
    _library.impl(op.name, call if shortcut is None else shortcut(op.name, call, settled), key)
    if op.out:
        outs = tuple(range(len(op.parameters), len(op.parameters) + len(op.out)))
        name = f"{op.name}.out"
        call, _ = _entry(op, first, name, op.parsed_out, op.check_out, outs, _run_with_out)
        _library.impl(name, call, key)
    _implemented.add((op.name, device))


def _run(op: Op, kernel: Kernel, args: tuple[Any, ...]) -> Any:
    return kernel.function(*args)


def _run_with_out(op: Op, kernel: Kernel, args: tuple[Any, ...]) -> None:
    args, outs = args[: len(op.parameters)], args[len(op.parameters) :]
    kernel.function(*args, out=outs[0] if len(outs) == 1 else outs)


def _entry(
    op: Op,
    first: Kernel,
    name: str,
    schema: torch._C.FunctionSchema,
    check: Callable[..., None],
    written: tuple[int, ...],
    run: Callable[[Op, Kernel, tuple[Any, ...]], Any],
) -> tuple[Callable[..., Any], Callable[..., Settled | None]]:
    """What torch calls for the operator, or its `.out` form, on the device of the first kernel, and what a `Shortcut`
    of that kernel's backend asks.

    It writes to the arguments at `written`.
    """
    device, count, defaults = first.device, len(schema.arguments), op.defaults
    signature = signature_of(schema.arguments, op.unread)
    # A signature of lists holds that of each of their tensors.
    most = MOST_SIGNATURES // 16 if any("List[Tensor]" in str(a.type) for a in schema.arguments) else MOST_SIGNATURES
    known = remembered.setdefault((name, device), {})

    # One function, whose way through a call that is remembered has no other call than the kernel's: each takes 0.2 µs.
    def call(*args: Any) -> Any:
        if len(args) < count:
            args = (*args, *defaults[len(args) :])
        key = signature(*args)
        try:
            choice = known.get(key)
        except TypeError:  # a symbolic size
            choice = choose(args)
        else:
            if choice is None or choice.epoch != settings.epoch:
                choice = choose(args)
                if len(known) >= most:
                    known.clear()
                known[key] = choice
        kernel = choice.always or choice.plan.ask(choice, args[: len(op.parameters)])
        choice.plan.calls[kernel.name] += 1
        if kernel.is_native and not (key[0] or written):
            return kernel.function(*args)
        with _unseen_by_autograd():
            result = run(op, kernel, args)
        _mark_written([args[i] for i in written])
        return result

    def choose(args: tuple[Any, ...]) -> Choice:
        check(*args)
        args = args[: len(op.parameters)]
        return plan_of(op, args[op.device_position].device.type if device == ANY_DEVICE else device).choose(args)

    def settled(*args: Any) -> Settled | None:
        choice = known.get(signature(*args, *defaults[len(args) :]))
        if choice is None or choice.always is None or choice.epoch != settings.epoch:
            return None
        return (choice.plan.calls, choice.always.name) if choice.always.backend == first.backend else None

    return _hidden_from_dynamo(call), _hidden_from_dynamo(settled)


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
        if value is not None:
            tensors = [value] if isinstance(value, torch.Tensor) else value
            torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])
