"""Trying kernels: each case of an operator on a kernel and on the reference."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from bnb_core.ops_registry import (
    EXACT,
    OPS,
    FallbackWarning,
    Kernel,
    Op,
    differences,
    force,
    kernel_counts,
    kernels_for,
)
from bnb_core.ops_registry.cases import Case, Level, fresh

__all__ = ["LEVELS", "Failure", "KernelTrial", "conform", "operators_of", "try_case"]

_INFERENCE = (
    *("dequantize_blockwise", "dequantize_4bit", "gemm_4bit", "grouped_gemm_4bit", "embedding_4bit"),
    *("int8_vectorwise_quant", "int8_vectorwise_dequant", "int8_mm", "int8_mm_dequant", "int8_scaled_mm"),
    *("int8_mixed_scaled_mm", "int8_linear"),
)
_QLORA = (*_INFERENCE, "quantize_4bit", "quantize_blockwise")
_OPTIMIZERS = ("quantize_blockwise", "dequantize_blockwise", *(op for op in OPS if op.startswith("optimizer_")))

# What a vendor may claim, and the operators that it takes.
LEVELS: dict[str, tuple[str, ...]] = {
    "inference": _INFERENCE,
    "qlora": _QLORA,
    "optimizers": _OPTIMIZERS,
    "full": tuple(OPS),
}


@dataclass(frozen=True)
class Failure:
    """One case that went wrong. program: Python that shows it again."""

    case: str
    sentence: str
    program: str


@dataclass
class KernelTrial:
    """What became of one kernel. kind: native, composed of other operators, or the reference, which is not tried.

    passed: cases of its operator that it computed as the reference does. refused: those that it declares not to take.
    """

    op: str
    kernel: str
    kind: Literal["native", "composed", "reference"]
    passed: int = 0
    refused: int = 0
    failures: list[Failure] = field(default_factory=list)


def operators_of(level: str) -> tuple[str, ...]:
    """The operators of a level. Raises ValueError for one that is unknown."""
    if level not in LEVELS:
        raise ValueError(f"there is no level {level!r}; there are {', '.join(LEVELS)}")
    return LEVELS[level]


def conform(device: str, ops: Iterable[str], cases: Level = "quick") -> Iterator[KernelTrial]:
    """Tries all kernels of a device for some operators, best first; where it has none, names the reference.

    cases: `full` for the long lists of sizes.
    """
    for op in ops:
        rows = [kernel for kernel in kernels_for(op, device) if kernel.unavailable is None]
        for kernel in rows:
            if not kernel.is_reference:
                yield _tried(OPS[op], device, kernel, cases)
        if len(rows) == 1:
            yield KernelTrial(op, rows[0].name, "reference")


def try_case(op: str, device: str, kernel: str, case: str, cases: Level = "full") -> list[str]:
    """What is wrong with one case of one kernel, in sentences; nothing where it is right.

    Raises ValueError for a kernel or a case that is not there.
    """
    row = next((row for row in kernels_for(op, device) if row.name == kernel), None)
    found = next((each for each in OPS[op].each_case(device, cases) if each.name == case), None)
    if row is None or found is None:
        what = f"kernel {kernel!r} on {device}" if row is None else f"case {case!r}"
        raise ValueError(f"{op} has no {what}")
    return list(_wrong(OPS[op], device, row, found))


def _tried(op: Op, device: str, kernel: Kernel, cases: Level) -> KernelTrial:
    trial = KernelTrial(op.name, kernel.name, "native" if kernel.is_native else "composed")
    for case in op.each_case(device, cases):
        try:
            refused = kernel.refuses(op.complete(case.args)) is not None
        except Exception:  # noqa: BLE001  it raises in the call too, which then says so
            refused = False
        if refused:
            trial.refused += 1
            continue
        sentences = list(_wrong(op, device, kernel, case))
        trial.passed += not sentences
        trial.failures += [_failure(op, device, kernel, case.name, cases, sentence) for sentence in sentences]
    if not trial.passed and not trial.failures:
        sentence = "it refuses every case of its operator"
        trial.failures.append(
            Failure("all", sentence, f"import bnb_core\nbnb_core.explain({op.name!r}, device={device!r})")
        )
    return trial


def _failure(op: Op, device: str, kernel: Kernel, case: str, cases: Level, sentence: str) -> Failure:
    arguments = ", ".join(map(repr, (op.name, device, kernel.name, case, cases)))
    program = f"import bnb_core\nfrom bnb_core.conformance import try_case\nprint(*try_case({arguments}), sep='\\n')"
    return Failure(case, sentence, program)


def _wrong(op: Op, device: str, kernel: Kernel, case: Case) -> Iterator[str]:
    counted = (op.name, device, kernel.name)
    before = kernel_counts().get(counted, 0)
    try:
        got, touched = _run(op, kernel.name, case.args)
        again, _ = _run(op, kernel.name, case.args)
        want, _ = _run(op, "reference", case.args)
    except Exception as error:  # noqa: BLE001  a vendor's kernel may raise anything
        yield f"it raised {type(error).__name__}: {error}"
        return
    yield from touched
    if kernel_counts().get(counted, 0) - before < 2:
        yield "another kernel ran in its place"
    if differences(again, got, EXACT):
        yield "two calls gave other bits"
    yield from differences(got, want, kernel.tolerance or op.tolerance)
    returned = got[: len(got) - len(op.mutated)]
    if kernel.is_native and any(tensor._is_view() for tensor in _flat(returned)):
        yield "a result is a view"


def _run(op: Op, name: str, args: tuple[Any, ...]) -> tuple[list[Any], list[str]]:
    """Results and mutated arguments on copies of the arguments; what was written of the others, in sentences."""
    args = op.complete(args)
    copies = fresh(args)
    with warnings.catch_warnings(), force(name):
        warnings.simplefilter("ignore", FallbackWarning)
        results = getattr(torch.ops.bnb_core, op.name).default(*copies)
    touched = [
        f"it wrote to {name}, which its schema does not mark as mutated"
        for i, name in enumerate(op.parameters)
        if i not in op.mutated and differences(list(_flat([copies[i]])), list(_flat([args[i]])), EXACT)
    ]
    returned = [] if results is None else list(results) if isinstance(results, (tuple, list)) else [results]
    return returned + [copies[i] for i in op.mutated], touched


def _flat(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _flat(value)
