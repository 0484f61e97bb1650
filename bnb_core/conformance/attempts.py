"""What is tried of one kernel: `ASPECTS` lists it, in the order in which it is tried."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.auto_functionalize import can_auto_functionalize
from torch.utils._pytree import tree_map_only

from bnb_core.ops_registry import (
    EXACT,
    BadCase,
    Case,
    FallbackWarning,
    Kernel,
    Op,
    compare,
    differences,
    force,
    kernel_counts,
)
from bnb_core.ops_registry.cases import Level, fresh, tensors

from .golden import golden_cases
from .large import LARGE, Large

__all__ = ["ASPECTS", "ON_DEMAND", "Attempt", "Outcome", "Subject", "opcheck"]

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@dataclass(frozen=True)
class Outcome:
    """sentences: what is wrong. share: the distance to what is right, as a share of the tolerance. refused: the
    kernel declares that it does not take these arguments.
    """

    sentences: tuple[str, ...] = ()
    share: float = 0.0
    refused: bool = False


@dataclass(frozen=True)
class Attempt:
    """One thing to try. dtype: what it computes in."""

    case: str
    dtype: str
    run: Callable[[], Outcome]

    def outcome(self) -> Outcome:
        """What came of it; what a kernel raises is a sentence."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)
            try:
                return self.run()
            except (Exception, SystemExit) as error:  # noqa: BLE001  a vendor's kernel may raise anything
                return Outcome((f"it raised {type(error).__name__}: {error}",))


@dataclass(frozen=True)
class Subject:
    """One kernel of an operator on a device, and the cases that it is tried with.

    known: what the reference makes of cases, by their names; shared by the kernels of one operator.
    """

    op: Op
    device: str
    kernel: Kernel
    level: Level = "quick"
    known: dict[str, list[Any]] = field(default_factory=dict)

    @cached_property
    def cases(self) -> list[Case]:
        """Those of the level; the quick ones are joined by others until each dtype, storage and block size occurs."""
        quick = list(self.op.each_case(self.device, self.level))
        seen = {value for case in quick for value in _values(self.op, case)}
        for case in self.op.each_case(self.device, "full") if self.level == "quick" else ():
            values = _values(self.op, case)
            if not values <= seen:
                seen |= values
                quick.append(case)
        return quick

    def representative(self, count: int = 1) -> list[Case]:
        """Of each dtype, the first cases with something in them that the kernel takes."""
        found: dict[str, list[Case]] = {}
        for case in self.cases:
            of_dtype = found.setdefault(dtype_of(self.op, case.args), [])
            full = all(tensor.numel() for tensor in tensors(case.args))
            if full and len(of_dtype) < count and self.takes(case.args):
                of_dtype.append(case)
        return [case for cases in found.values() for case in cases]

    def takes(self, args: tuple[Any, ...]) -> bool:
        """Whether the kernel declares so; a refusal that raises is for `agreement` to tell."""
        try:
            return self.refusal(args) is None
        except (Exception, SystemExit):  # noqa: BLE001
            return False

    def refusal(self, args: tuple[Any, ...]) -> str | None:
        return self.kernel.refuses(self.op.complete(args))

    def overload(self, name: str = "default") -> Any:
        return getattr(getattr(torch.ops.bnb_core, self.op.name), name)

    def expected(self, case: Case) -> list[Any]:
        """What the reference makes of a case, on the CPU."""
        if case.name not in self.known:
            self.known[case.name] = self.reference(case.args)
        return self.known[case.name]

    def reference(self, args: tuple[Any, ...]) -> list[Any]:
        """What the reference makes of arguments, on the CPU."""
        copies = fresh(tree_map_only(Tensor, Tensor.cpu, self.op.complete(args)))
        with force("reference"):
            return self.op.outcome(self.overload()(*copies), copies)

    def called(self, args: tuple[Any, ...]) -> tuple[list[Any], list[str]]:
        """What the kernel makes of copies of the arguments, and what is wrong with the call itself, in sentences."""
        args = self.op.complete(args)
        copies = fresh(args)
        counted = (self.op.name, self.device, self.kernel.name)
        before = kernel_counts().get(counted, 0)
        with force(self.kernel.name):
            returned = self.overload()(*copies)
        wrong = ["another kernel ran in its place"] if kernel_counts().get(counted, 0) == before else []
        wrong += [
            f"it wrote to {name}, which its schema does not mark as mutated"
            for i, name in enumerate(self.op.parameters)
            if i not in self.op.mutated and differences(tensors([copies[i]]), tensors([args[i]]), EXACT)
        ]
        return self.op.outcome(returned, copies), wrong

    def distance(self, got: list[Any], want: list[Any], wrong: Iterable[str] = ()) -> Outcome:
        found = compare(got, want, self.kernel.tolerance or self.op.tolerance)
        return Outcome((*wrong, *found.sentences), found.share)


def dtype_of(op: Op, args: tuple[Any, ...]) -> str:
    """What a call computes in: the dtype asked for, that of its first tensor, or of its first result."""
    args = op.complete(args)
    asked = args[op.parameters.index("dtype")] if "dtype" in op.parameters else None
    first = tensors(args)[0].dtype
    if asked is None and not first.is_floating_point:
        made = [result.dtype for result in op.results(*args)[:1] if result is not None]
        asked = next((dtype for dtype in made if dtype.is_floating_point), None)
    return str(asked or first).removeprefix("torch.")


# -- what is tried ---------------------------------------------------------------------------------------------------


def agreement(subject: Subject) -> Iterator[Attempt]:
    """Each case: as the reference, twice to the same bits, and what is not marked as mutated stays as it was."""
    for case in subject.cases:

        def run(case: Case = case) -> Outcome:
            reason = subject.refusal(case.args)
            if reason is not None:
                return _refused(subject, case.args, reason)
            got, wrong = subject.called(case.args)
            again = subject.called(case.args)[0]
            if differences(again, got, EXACT):
                wrong.append("two calls gave other bits")
            returned, after = (each[: len(each) - len(subject.op.mutated)] for each in (got, again))
            if _memory(returned) & _memory(after):
                wrong.append("two calls returned the same memory")
            if any(tensor._is_view() for tensor in tensors(returned)):
                wrong.append("a result is a view")
            wrong += [f"a result is on {t.device.type}" for t in tensors(got) if t.device.type != subject.device]
            return subject.distance(got, subject.expected(case), wrong)

        yield Attempt(case.name, dtype_of(subject.op, case.args), run)


def _refused(subject: Subject, args: tuple[Any, ...], reason: str) -> Outcome:
    """What a kernel declares not to take it does not take where it is forced either, and its reason is said."""
    try:
        subject.called(args)
    except RuntimeError as error:
        if reason in str(error):
            return Outcome(refused=True)
    return Outcome((f"it declares to refuse ({reason}), but runs where it is forced",))


def golden(subject: Subject) -> Iterator[Attempt]:
    """Arguments and results that are written down."""
    for case in golden_cases(subject.op.name, subject.device):

        def run(args: tuple[Any, ...] = case.args, want: list[Any] = case.results) -> Outcome:
            if subject.refusal(args) is not None:
                return Outcome(refused=True)
            got, wrong = subject.called(args)
            return subject.distance(got, want, wrong)

        yield Attempt(case.name, dtype_of(subject.op, case.args), run)


def strided(subject: Subject) -> Iterator[Attempt]:
    """Each tensor argument in turn as every other column of a wider one."""
    for case in subject.representative():
        args = subject.op.complete(case.args)
        for i, name in enumerate(subject.op.parameters):
            if not tensors([args[i]]):
                continue

            def run(case: Case = case, args: tuple[Any, ...] = args, i: int = i) -> Outcome:
                changed = (*args[:i], tree_map_only(Tensor, _spread, args[i]), *args[i + 1 :])
                if subject.refusal(changed) is not None:
                    return Outcome(refused=True)
                got, wrong = subject.called(changed)
                return subject.distance(got, subject.expected(case), wrong)

            yield Attempt(f"{case.name}, {name} strided", dtype_of(subject.op, case.args), run)


def out_form(subject: Subject) -> Iterator[Attempt]:
    """The `.out` form writes what the operator returns, to contiguous and to strided tensors."""
    for case in subject.representative(3) if subject.op.out else ():
        for kind in ("contiguous", "strided"):

            def run(case: Case = case, kind: str = kind) -> Outcome:
                args = subject.op.complete(case.args)
                want = subject.expected(case)
                outs = [torch.full((*w.shape, 2), 99, device=subject.device).to(w.dtype)[..., 0] for w in want]
                outs = outs if kind == "strided" else [out.contiguous() for out in outs]
                with force(subject.kernel.name):
                    subject.overload("out")(*args, *outs)
                return subject.distance(outs, want)

            yield Attempt(f"{case.name}, to {kind} tensors", dtype_of(subject.op, case.args), run)


def bad_input(subject: Subject) -> Iterator[Attempt]:
    """What the operator's check refuses is refused with its sentence, and no kernel runs."""
    for bad in subject.op.each_bad_case(subject.device):

        def run(bad: BadCase = bad) -> Outcome:
            before = kernel_counts()
            try:
                with force(subject.kernel.name):
                    subject.overload()(*fresh(bad.args))
            except RuntimeError as error:
                named = str(error).startswith(f"bnb_core::{subject.op.name}: ")
                if named and re.search(bad.error, str(error)) and kernel_counts() == before:
                    return Outcome()
                return Outcome((f"it was not refused as `{bad.error}`: {error}",))
            return Outcome((f"it was not refused as `{bad.error}`",))

        yield Attempt(bad.name, "", run)


def other_device(subject: Subject) -> Iterator[Attempt]:
    """On the second device of its type, while the first is the current one."""
    if _device_count(subject.device) < 2:
        return
    there = torch.device(subject.device, 1)
    for case in subject.representative():

        def run(case: Case = case) -> Outcome:
            args = tree_map_only(Tensor, lambda tensor: tensor.to(there), subject.op.complete(case.args))
            got, wrong = subject.called(args)
            wrong += [
                f"a result is on {tensor.device}, not {there}" for tensor in tensors(got) if tensor.device != there
            ]
            return subject.distance(got, subject.expected(case), wrong)

        yield Attempt(f"{case.name} on {there}", dtype_of(subject.op, case.args), run)


def other_stream(subject: Subject) -> Iterator[Attempt]:
    """On a stream of its own, behind work that makes its arguments there: on another one it would read too early."""
    module = None if subject.device == "cpu" else torch.get_device_module(subject.device)
    if module is None or not hasattr(module, "stream") or not hasattr(module, "Stream"):
        return
    for case in subject.representative():

        def run(case: Case = case) -> Outcome:
            args = subject.op.complete(case.args)
            want = subject.expected(case)
            work = torch.ones(2048, 2048, device=subject.device)
            with module.stream(module.Stream()):
                for _ in range(20):
                    work = work @ work * 2**-11
                late = (work[0, 0] - work[0, 0]).to(torch.int8)
                behind = tree_map_only(Tensor, lambda t: t.view(torch.uint8).add(late).view(t.dtype), args)
                got, wrong = subject.called(behind)
            module.synchronize()
            return subject.distance(got, want, wrong)

        yield Attempt(f"{case.name} on a stream", dtype_of(subject.op, case.args), run)


def traced(subject: Subject) -> Iterator[Attempt]:
    """opcheck of both forms: schema, fake tensors, and tracing by AOTAutograd with dynamic sizes."""
    called = subject.overload()
    if subject.op.mutated and not can_auto_functionalize(called):
        return
    cases = subject.representative()
    with_nan = (case for case in subject.cases if _has_nan(case.args) and subject.takes(case.args))
    for case in (*cases, *islice(with_nan, 1)):

        def run(case: Case = case) -> Outcome:
            with force(subject.kernel.name):
                opcheck(called, fresh(subject.op.complete(case.args)))
            return Outcome()

        yield Attempt(case.name, dtype_of(subject.op, case.args), run)
    for case in cases[:1] if subject.op.out else ():

        def run_out(case: Case = case) -> Outcome:
            outs = [torch.zeros_like(want, device=subject.device) for want in subject.expected(case)]
            with force(subject.kernel.name):
                opcheck(subject.overload("out"), (*fresh(subject.op.complete(case.args)), *outs))
            return Outcome()

        yield Attempt(f"{case.name}, out form", dtype_of(subject.op, case.args), run_out)


def large(subject: Subject) -> Iterator[Attempt]:
    """More than 2^31 elements: what lies beyond is what the reference makes of it alone."""
    for case in LARGE:
        if case.op != subject.op.name:
            continue

        def run(case: Large = case) -> Outcome:
            args = case.args(subject.device)
            if subject.refusal(args) is not None:
                return Outcome(refused=True)
            with force(subject.kernel.name):
                got = subject.overload()(*args)
            parts = case.parts(args, got, lambda *args: subject.reference(args))
            return subject.distance([part for part, _ in parts], [want for _, want in parts])

        yield Attempt(f"{case.gigabytes} GB", case.dtype, run)


ASPECTS: dict[str, Callable[[Subject], Iterator[Attempt]]] = {
    "agreement": agreement,
    "golden bytes": golden,
    "strided": strided,
    "out form": out_form,
    "bad input": bad_input,
    "other device": other_device,
    "stream": other_stream,
    "opcheck": traced,
}
# Not without being asked for.
ON_DEMAND = {"more than 2^31 elements": large}


def opcheck(called: Any, args: tuple[Any, ...]) -> None:
    """torch's opcheck of an operator, but that two NaN count as equal. Raises what it raises, and AssertionError."""
    expected = fresh(args)
    expected = (called(*expected), expected)
    nan = _has_nan([expected, args])
    checks = [name for name in OPCHECKS if not (nan and name == "test_aot_dispatch_dynamic")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(called, args, test_utils=checks)
    if nan:
        torch.compiler.reset()
        compiled = torch.compile(lambda *args: called(*args), fullgraph=True, dynamic=True, backend="aot_eager")
        found = fresh(args)
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            wrong = differences(tensors([compiled(*found), found]), tensors(expected), EXACT)
        assert not wrong, wrong


def _values(op: Op, case: Case) -> set[tuple[str, Any]]:
    """What a case has of the things that are told apart: texts, dtypes, block sizes."""
    found = set()
    for name, value in zip(op.parameters, op.complete(case.args), strict=True):
        found |= {(name, tensor.dtype) for tensor in tensors([value])}
        if isinstance(value, (str, torch.dtype)) or name == "blocksize":
            found.add((name, value))
    return found


def _memory(values: Any) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(values) if tensor.numel()}


def _has_nan(values: Any) -> bool:
    return any(t.is_floating_point() and bool(t.cpu().isnan().any()) for t in tensors(values))


def _spread(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0]


def _device_count(device: str) -> int:
    return int(getattr(torch.get_device_module(device), "device_count", lambda: 1)())
