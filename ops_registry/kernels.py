"""The kernel table: which functions can compute an operator on a device, in which order, within which limits.

A row is a `Kernel`. A backend lists its rows in a tuple `KERNELS`; discovery adds them here. Rows of a (op, device)
stand best first: by `priority`, then in the order they were added; then one composed of other operators, where the
device has kernels for those; rows for any device (the reference) come last.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from .compositions import COMPOSED, COMPOSITIONS
from .op import OPS
from .signature import READ
from .tolerance import Tolerance

__all__ = ["ANY_DEVICE", "Kernel", "add_row", "kernel_named", "kernels_for", "remove_row", "rows"]

ANY_DEVICE = "any"
REFERENCE = "reference"


@dataclass(frozen=True, eq=False)
class Kernel:
    """One row of the kernel table.

    op: name of the operator.
    device: device type (`cpu`, `cuda`, …), or `any`.
    name: what people force and read, as `cpu/avx2`: backend, slash, variant.
    fn: the function, or `"module:function"`, imported at its first call; a module that begins with a dot is relative to
        the backend, and the function may be an attribute of another (`"module:kernels.avx2.function"`). Its parameters
        are those of the op's schema, by name, order and default; for an op with an `.out` form there is one more,
        `out=None`: the tensor (or tuple of tensors) to write to. It returns new tensors, no views.
    limits: what a table can say: `{"A.dtype": {torch.float32}, "blocksize": {64, 128}}`. A key is an argument, or the
        dtype, shape, ndim or device of a tensor (of the first one of a list); None and empty lists pass.
    why_not: what a table cannot say: called with the op's arguments, returns None or the sentence of refusal.
    unavailable: why the row can never run here ("this CPU has no avx512f"), where that is known from the start.
    tolerance: accepted distance to the reference, where it is tighter than the op's own.
    priority: rows of higher priority are tried first.
    """

    op: str
    device: str
    name: str
    fn: Callable[..., Any] | str
    limits: Mapping[str, Collection[Any]] = field(default_factory=dict)
    why_not: Callable[..., str | None] | str | None = None
    unavailable: str | None = None
    tolerance: Tolerance | None = None
    priority: int = 0
    backend: str = ""

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The kernel function itself; imports it where the row names it."""
        return self._resolve(self.fn)

    @cached_property
    def refusal(self) -> Callable[..., str | None] | None:
        """`why_not` itself; imports it where the row names it."""
        return None if self.why_not is None else self._resolve(self.why_not)

    @cached_property
    def is_reference(self) -> bool:
        return self.device == ANY_DEVICE

    @cached_property
    def is_native(self) -> bool:
        """True for a backend's own; the reference and what is composed are in torch's operations."""
        return not self.is_reference and self.name != COMPOSED

    @property
    def origin(self) -> str:
        """Where the function stands, for messages."""
        if isinstance(self.fn, str):
            return f"{self.backend}{self.fn}" if self.fn.startswith(".") else self.fn
        return f"{self.fn.__module__}:{self.fn.__qualname__}"

    def _resolve(self, target: Callable[..., Any] | str) -> Callable[..., Any]:
        if callable(target):
            return target
        module, _, attribute = target.partition(":")
        return operator.attrgetter(attribute)(importlib.import_module(module, self.backend or None))

    def outside_limits(self, args: tuple[Any, ...]) -> str | None:
        """Why the declared limits, or the machine, exclude these arguments, as a sentence; None where they do not."""
        if self.unavailable is not None:
            return self.unavailable
        for key, allowed in self.limits.items():
            value = limited_value(OPS[self.op].position(key), args)
            if value is not None and value not in allowed:
                return (
                    f"{key} is {show(value)}, this kernel takes {', '.join(sorted(map(show, allowed), key=_natural))}"
                )
        return None

    def refuses(self, args: tuple[Any, ...]) -> str | None:
        """Why it does not take these arguments, as a sentence; None where it does."""
        return self.outside_limits(args) or (self.refusal(*args) if self.refusal is not None else None)


def limited_value(position: tuple[int, str | None], args: tuple[Any, ...]) -> Any:
    """The value that a limit speaks of: argument number `position[0]`, or its attribute `position[1]`."""
    index, attribute = position
    value = args[index]
    if isinstance(value, (list, tuple)) and attribute is not None:
        value = value[0] if value else None
    if value is not None and attribute is not None:
        value = getattr(value, attribute)
    return tuple(value) if isinstance(value, list) else value


def show(value: Any) -> str:
    """A value as messages write it: dtypes without `torch.`."""
    return str(value).removeprefix("torch.")


def _natural(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (0, text)


_rows: dict[str, list[Kernel]] = {}


def rows(op: str | None = None) -> tuple[Kernel, ...]:
    """All rows of one operator, or of all."""
    return tuple(k for name, found in _rows.items() for k in found if op in (None, name))


def kernels_for(op: str, device: str) -> tuple[Kernel, ...]:
    """The rows that can serve `op` on a device type, best first, the reference last."""
    found = [k for k in _rows.get(op, ()) if k.device in (device, ANY_DEVICE)]
    own = sorted((k for k in found if not k.is_reference), key=lambda k: -k.priority)
    if op in COMPOSITIONS and all(_has_kernel(need, device) for need in COMPOSITIONS[op].needs):
        own.append(_composed(op, device))
    return (*own, *(k for k in found if k.is_reference))


def kernel_named(name: str, op: str, device: str) -> Kernel:
    """The row of that name that can serve `op` on a device type. Raises ValueError where there is none."""
    found = next((kernel for kernel in kernels_for(op, device) if kernel.name == name), None)
    if found is None:
        raise ValueError(f"{op} has no kernel {name!r} on {device}")
    return found


def _has_kernel(op: str, device: str) -> bool:
    return any(k.device == device and k.unavailable is None for k in _rows.get(op, ()))


@cache
def _composed(op: str, device: str) -> Kernel:
    module = "bnb_core.backends.reference.composed"
    why_not = f"{module}:why_not_{op}" if COMPOSITIONS[op].limited else None
    return Kernel(op=op, device=device, name=COMPOSED, fn=f"{module}:{op}", why_not=why_not)


def add_row(kernel: Kernel) -> None:
    """Adds a row.

    Raises ValueError for an unknown operator, an argument in `limits` that is unknown or `Op.unread`, a tolerance
    looser than the operator's, the device `any` for another than the reference, or a second row of the same (op,
    device, name), naming both origins.
    """
    if kernel.op not in OPS:
        raise ValueError(f"kernel {kernel.name} is for an operator {kernel.op!r} that does not exist")
    op = OPS[kernel.op]
    if kernel.name == COMPOSED:
        raise ValueError(f"kernel {kernel.op} on {kernel.device} has the name of what is composed of other operators")
    if (kernel.device == ANY_DEVICE) != (kernel.name == REFERENCE):
        raise ValueError(f"kernel {kernel.name} is for device {kernel.device}, but {ANY_DEVICE} is {REFERENCE}'s alone")
    for key in kernel.limits:
        attribute = op.position(key)[1]
        if key in op.unread:
            raise ValueError(f"kernel {kernel.name} limits {key}, by which calls of {op.name} are not told apart")
        if attribute not in (None, *READ):
            raise ValueError(
                f"kernel {kernel.name} limits {key}, but a limit on a tensor speaks of its {', '.join(READ)}; the rest "
                "is for why_not"
            )
    if kernel.tolerance is not None and not kernel.tolerance.within(op.tolerance):
        raise ValueError(
            f"kernel {kernel.name} declares {kernel.tolerance} for {op.name}, looser than the operator's {op.tolerance}"
        )
    for other in _rows.setdefault(op.name, []):
        if (other.device, other.name) == (kernel.device, kernel.name):
            raise ValueError(
                f"kernel {kernel.name} of {op.name} on {kernel.device} is registered twice: "
                f"by {other.origin} and by {kernel.origin}"
            )
    _rows[op.name].append(kernel)


def remove_row(kernel: Kernel) -> None:
    """Takes a row out again."""
    _rows[kernel.op].remove(kernel)
