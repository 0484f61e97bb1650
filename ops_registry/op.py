"""What an operator consists of, and the table of all of them.

`define(...)` is called once per operator in `ops/`. From the parts given there everything else is made: the
registration with `torch.library`, the fake kernel, the checks of the `.out` form, the tests and the op table of the
docs.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from .cases import BadCase, Case, Level, Maker
from .checks import Check
from .tolerance import EXACT, Tolerance

__all__ = ["NAMESPACE", "OPS", "Op", "Result", "define"]

NAMESPACE = "bnb_core"


@dataclass(frozen=True)
class Result:
    """Shape and dtype of one output; a length that depends on data is None."""

    shape: Sequence[Any]
    dtype: torch.dtype

    def empty(self, device: torch.device) -> torch.Tensor:
        """An uninitialised (or fake) tensor like this; a length that depends on data becomes an unbacked symbol."""
        sizes = [torch.library.get_ctx().new_dynamic_size() if n is None else n for n in self.shape]
        return torch.empty(sizes, dtype=self.dtype, device=device)


@dataclass(frozen=True, eq=False)
class Op:
    """An operator: what it is called with, what is refused, what comes out, and how it is tested.

    schema: torch schema without namespace.
    check: called with all arguments before any kernel, eager and fake alike; raises through `torch._check` only.
    results: from the arguments, a `Result` (or None) per output; () for operators that only mutate.
    cases, bad_cases: valid inputs, and inputs with the error expected, made by a `Maker` on its device;
        `each_case` and `each_bad_case` call them.
    tolerance: ceiling for every kernel's distance to the reference.
    out: names of the output arguments of the `.out` form; () where there is none.
    unread: names of arguments that neither the check nor a kernel's limit reads: calls that differ in them are alike.
    """

    schema: str
    check: Callable[..., None]
    results: Callable[..., Sequence[Result | None]]
    cases: Callable[[Maker], Iterator[Case]]
    bad_cases: Callable[[Maker], Iterator[BadCase]]
    doc: str
    tolerance: Tolerance = EXACT
    out: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @cached_property
    def name(self) -> str:
        return self.schema.partition("(")[0]

    @cached_property
    def parsed(self) -> torch._C.FunctionSchema:
        return torch._C.parse_schema(f"{NAMESPACE}::{self.schema}")

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.parsed.arguments)

    @cached_property
    def defaults(self) -> tuple[Any, ...]:
        """The default of each parameter, None where it has none."""
        return tuple(a.default_value if a.has_default_value() else None for a in self.parsed.arguments)

    @cached_property
    def mutated(self) -> tuple[int, ...]:
        """Positions of the arguments that the operator writes to."""
        return tuple(i for i, a in enumerate(self.parsed.arguments) if a.alias_info and a.alias_info.is_write)

    @cached_property
    def required(self) -> int:
        """How many arguments have no default."""
        return sum(not a.has_default_value() for a in self.parsed.arguments)

    @cached_property
    def device_position(self) -> int:
        """Position of the argument whose device is the operator's: its first required tensor."""
        return next(i for i, a in enumerate(self.parsed.arguments) if str(a.type) == "Tensor")

    @cached_property
    def out_schema(self) -> str:
        """Schema of the `.out` form: the same arguments, then the tensors to write to; returns nothing."""
        outs = ", ".join(f"Tensor({chr(ord('a') + i)}!) {name}" for i, name in enumerate(self.out))
        arguments = self.schema.partition("(")[2].rpartition(" -> ")[0].removesuffix(")")
        # Defaults cannot stand before required arguments.
        required = ", ".join(part.partition("=")[0] for part in arguments.split(", "))
        return f"{self.name}.out({required}, {outs}) -> ()"

    @cached_property
    def parsed_out(self) -> torch._C.FunctionSchema:
        return torch._C.parse_schema(f"{NAMESPACE}::{self.out_schema}")

    def position(self, key: str) -> tuple[int, str | None]:
        """Where `"argument"` or `"argument.attribute"` stands; ValueError for an argument that the op does not have."""
        name, _, attribute = key.partition(".")
        if name not in self.parameters:
            raise ValueError(f"{self.name} has no argument {name!r}; it has {', '.join(self.parameters)}")
        return self.parameters.index(name), attribute or None

    def complete(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """Adds the defaults that the dispatcher leaves out at the end."""
        return (*args, *self.defaults[len(args) :])

    def outcome(self, returned: Any, args: Sequence[Any]) -> list[Any]:
        """What a call returned, then the arguments that it wrote."""
        values = [] if returned is None else list(returned) if isinstance(returned, (list, tuple)) else [returned]
        return values + [args[i] for i in self.mutated]

    def each_case(self, device: torch.device | str, level: Level = "quick") -> Iterator[Case]:
        """The valid inputs on a device, the same ones in every run; `full` has the long lists of sizes."""
        return self.cases(self._maker(device, level))

    def each_bad_case(self, device: torch.device | str) -> Iterator[BadCase]:
        """The inputs that must be refused, and how."""
        return self.bad_cases(self._maker(device, "quick"))

    def _maker(self, device: torch.device | str, level: Level) -> Maker:
        return Maker(device, level, seed=zlib.crc32(self.name.encode()))

    def fake(self, *args: Any) -> Any:
        """The op on fake tensors: the same check, then outputs of the right shape and dtype without data."""
        args = self.complete(args)
        self.check(*args)
        device = args[self.device_position].device
        made = tuple(None if r is None else r.empty(device) for r in self.results(*args))
        return made if len(made) > 1 else made[0] if made else None

    def check_out(self, *args: Any) -> None:
        """The check of the `.out` form: the op's own, then dtype, shape and device of each tensor to write to."""
        args, outs = args[: -len(self.out)], args[-len(self.out) :]
        self.check(*args)
        check = Check(f"{self.name}.out")
        check.one_device(args[self.device_position], **dict(zip(self.out, outs, strict=True)))
        for name, out, result in zip(self.out, outs, self.results(*args), strict=True):
            assert result is not None
            check.dtype(name, out, (result.dtype,))
            check.shape(name, out, result.shape)


OPS: dict[str, Op] = {}


def define(op: Op) -> Op:
    """Puts an operator into the table, its documentation dedented."""
    assert op.name not in OPS, f"{op.name} is defined twice"
    OPS[op.name] = op = replace(op, doc=inspect.cleandoc(op.doc))
    return op
