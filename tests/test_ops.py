"""Every operator of the registry, with every case it declares: agreement, mutation, refusals, tracing."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEVICE, LEVEL

from bnb_core import ops_registry
from bnb_core.conformance import conform
from bnb_core.ops_registry import OPS, Kernel, Op, kernels_for
from bnb_core.ops_registry.cases import Case, fresh, tensors
from bnb_core.ops_registry.checks import Check
from bnb_core.ops_registry.signature import signature_of

SCHEMAS = Path(__file__).parent / "schemas.txt"


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    # A single element may have any stride and count as contiguous, but not be viewed as bytes.
    return tensor.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def spread(items: list[Any], most: int) -> list[Any]:
    """All of the items on level full, else at most `most` of them, evenly spaced, always the same ones."""
    return items if LEVEL == "full" or len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def each_case(most: int) -> Callable[[Any], Any]:
    values = [(op, case) for op in OPS.values() for case in spread(list(op.each_case(DEVICE, LEVEL)), most)]
    return pytest.mark.parametrize(("op", "case"), values, ids=[f"{op.name}: {case.name}" for op, case in values])


def overload(op: Op) -> Any:
    return getattr(torch.ops.bnb_core, op.name).default


def kernel_parameters() -> list[Any]:
    """The rows of the device under test; those that can never run on this machine are skipped with their reason."""
    rows = [kernel for op in OPS for kernel in kernels_for(op, DEVICE.type)]
    return [
        pytest.param(
            kernel,
            id=f"{kernel.op}: {kernel.name}",
            marks=[pytest.mark.skip(reason=kernel.unavailable)] if kernel.unavailable else [],
        )
        for kernel in rows
    ]


def test_schemas_are_frozen() -> None:
    """An exported program depends on these signatures: a change here is a change of the public interface."""
    defined = sorted(
        str(getattr(getattr(torch.ops.bnb_core, op.name), overload)._schema)
        for op in OPS.values()
        for overload in getattr(torch.ops.bnb_core, op.name).overloads()
    )
    assert "\n".join(defined) + "\n" == SCHEMAS.read_text()


@pytest.mark.parametrize("kernel", kernel_parameters())
def test_kernel_has_the_parameters_of_its_schema(kernel: Kernel) -> None:
    op = OPS[kernel.op]
    parameters = list(inspect.signature(kernel.function).parameters.values())
    names = [p.name for p in parameters]
    assert names == [*op.parameters, *(["out"] if op.out else [])]
    for parameter, argument in zip(parameters, op.parsed.arguments, strict=False):
        if argument.has_default_value():
            assert parameter.default == argument.default_value, parameter.name


@pytest.mark.parametrize("kernel", kernel_parameters())
def test_kernel_conforms(kernel: Kernel) -> None:
    """All that `bnb-core conformance` tries of it."""
    (trial,) = conform(DEVICE.type, [kernel.op], LEVEL, kernels=[kernel.name])
    assert not trial.failures, trial.failures[:3]


@each_case(most=1000)
def test_results_have_the_declared_shapes_and_inputs_stay(op: Op, case: Case) -> None:
    args = fresh(op.complete(case.args))
    before, versions = fresh(args), [t._version for t in tensors(args)]
    results = overload(op)(*args)
    declared = op.results(*args)
    returned = () if results is None else results if isinstance(results, tuple) else (results,)
    for result, expected in zip(returned, declared, strict=True):
        assert (result is None) == (expected is None)
        if result is not None and expected is not None:
            assert result.dtype == expected.dtype
            assert all(n is None or n == found for n, found in zip(expected.shape, result.shape, strict=True))
            assert result.device.type == DEVICE.type and result.is_contiguous()
    mutated = {id(t) for i in op.mutated for t in tensors([args[i]])}
    for tensor, old, version in zip(tensors(args), tensors(before), versions, strict=True):
        if id(tensor) in mutated:
            assert tensor._version > version, "a mutated argument must bump its version"
        else:
            assert tensor._version == version
            assert torch.equal(as_bytes(tensor), as_bytes(old))


WITH_OUT = [op for op in OPS.values() if op.out]


@pytest.mark.parametrize("op", WITH_OUT, ids=[op.name for op in WITH_OUT])
def test_out_form_refuses_a_wrong_tensor(op: Op) -> None:
    out_overload = getattr(torch.ops.bnb_core, op.name).out
    case = next(iter(op.each_case(DEVICE)))
    args = op.complete(case.args)
    outs = [torch.empty(r.shape, dtype=r.dtype, device=DEVICE) for r in op.results(*args) if r]
    name = op.out[0]
    with pytest.raises(RuntimeError, match=f"bnb_core::{op.name}.out: {name} is float64, expected"):
        out_overload(*args, outs[0].double(), *outs[1:])
    with pytest.raises(RuntimeError, match=f"bnb_core::{op.name}.out: {name} has shape .*, expected"):
        out_overload(*args, torch.stack([outs[0], outs[0]]), *outs[1:])
    with pytest.raises(RuntimeError, match=f"bnb_core::{op.name}.out: {name} is on meta, expected|expected meta"):
        out_overload(*args, outs[0].to("meta"), *outs[1:])


@pytest.mark.parametrize("kernel", kernel_parameters())
def test_bad_input_is_refused_after_good_calls(kernel: Kernel) -> None:
    """What is remembered of good calls lets nothing bad pass, and a refusal does not stop the next good call."""
    op = OPS[kernel.op]
    taken = [
        case for case in spread(list(op.each_case(DEVICE, LEVEL)), 40) if kernel.refuses(op.complete(case.args)) is None
    ]
    for bad in [None, *op.each_bad_case(DEVICE), None]:
        with ops_registry.force(kernel.name):
            for case in taken if bad is None else taken[:1]:
                overload(op)(*fresh(case.args))
            if bad is None:
                continue
            before = ops_registry.kernel_counts()
            with pytest.raises(RuntimeError, match=rf"^bnb_core::{op.name}: (.|\n)*({bad.error})"):
                overload(op)(*fresh(bad.args))
            assert ops_registry.kernel_counts() == before


class Described:
    """A tensor's description, of which a check may read no more than this."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype, self.shape, self.ndim, self.device = tensor.dtype, tensor.shape, tensor.ndim, tensor.device

    def numel(self) -> int:
        return self.shape.numel()


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_checks_read_what_is_in_the_signature(op: Op) -> None:
    """Else two calls that look alike to the dispatcher could differ for the check."""

    def described(args: tuple[Any, ...]) -> Any:
        return torch.utils._pytree.tree_map_only(torch.Tensor, Described, op.complete(args))

    for case in spread(list(op.each_case(DEVICE, LEVEL)), 40):
        op.check(*described(case.args))
        if op.out:
            outs = op.check_out, [torch.empty(r.shape, dtype=r.dtype) for r in op.results(*op.complete(case.args)) if r]
            outs[0](*described(case.args), *(Described(out.to(DEVICE)) for out in outs[1]))
    for bad in op.each_bad_case(DEVICE):
        with pytest.raises(RuntimeError, match=bad.error):
            op.check(*described(bad.args))


def altered(value: Any) -> Iterator[Any]:
    """Values that differ from one argument in a single thing."""
    if isinstance(value, torch.Tensor):
        yield value.to(torch.float64 if value.dtype != torch.float64 else torch.float32)
        yield value[None]
        yield torch.empty_like(value, device="meta")
    elif isinstance(value, (list, tuple)):
        yield type(value)(value[:-1]) if value else type(value)([torch.empty(0)])
        for i, item in enumerate(value):
            yield from (type(value)([*value[:i], other, *value[i + 1 :]]) for other in altered(item))
    elif isinstance(value, torch.dtype):
        yield torch.complex64
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield value + 1
    elif isinstance(value, str):
        yield value + "x"


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_signatures_differ_in_every_argument(op: Op) -> None:
    for schema, name in ((op.parsed, op.name), *(((op.parsed_out, f"{op.name}.out"),) if op.out else ())):
        signature = signature_of(schema.arguments)
        for case in spread(list(op.each_case(DEVICE, LEVEL)), 10):
            args = op.complete(case.args)
            if schema is not op.parsed:
                args += tuple(torch.empty(r.shape, dtype=r.dtype, device=DEVICE) for r in op.results(*args) if r)
            own = signature(*args)
            assert own == signature(*fresh(args)) and hash(own) == hash(signature(*fresh(args)))
            for i, argument in enumerate(schema.arguments):
                others = list(altered(args[i]))
                if "Optional" in str(argument.type):
                    others += [None] if args[i] is not None else []
                else:
                    assert others, argument.name
                for other in others:
                    assert signature(*args[:i], other, *args[i + 1 :]) != own, f"{name}: {argument.name}"


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_every_check_refuses_something(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place that checks fails in at least one bad case: none can be deleted unseen."""
    reached: dict[str, bool] = {}
    that = Check.that

    def recording(self: Check, condition: Any, sentence: Callable[[], str]) -> None:
        site = place_of_check()
        reached[site] = reached.get(site, False) or condition is False
        that(self, condition, sentence)

    monkeypatch.setattr(Check, "that", recording)
    for case in op.each_case(DEVICE):
        op.check(*op.complete(case.args))
    for bad in op.each_bad_case(DEVICE):
        with pytest.raises(RuntimeError):
            op.check(*op.complete(bad.args))
    never = [site for site, failed in reached.items() if not failed]
    assert not never, "\n".join(never)


def place_of_check() -> str:
    """The method of `Check` and the argument it is about, then the lines of the operator's module that lead there."""
    method, lines, frame = "", [], inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "test_every_check_refuses_something":
        file = frame.f_code.co_filename
        if file.endswith("checks.py"):
            method = f"{frame.f_code.co_name}({str(frame.f_locals.get('name', '')).partition('[')[0]})"
        elif "ops_registry/ops/" in file:
            lines.append(str(frame.f_lineno))
        frame = frame.f_back
    return " < ".join([method, *lines])


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_fakes_refuse_the_same(op: Op) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for bad in op.each_bad_case(DEVICE):
        with FakeTensorMode() as mode:
            args = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, op.complete(bad.args))
            with pytest.raises(RuntimeError, match=rf"^bnb_core::{op.name}: (.|\n)*({bad.error})"):
                overload(op)(*args)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_documentation_names_what_the_op_takes(op: Op) -> None:
    missing = [name for name in op.parameters if not re.search(rf"\b{name}\b", op.doc)]
    assert not missing


def test_op_table_of_the_docs_is_current() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, root / "ci" / "op_table.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
