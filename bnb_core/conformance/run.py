"""A conformance run: which operators a claim takes, and each kernel of a device in turn."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import torch

from bnb_core.ops_registry import OPS, Kernel, kernel_named, kernels_for
from bnb_core.ops_registry.cases import Level

from .attempts import ASPECTS, ON_DEMAND, Attempt, Subject
from .findings import Failure, KernelTrial, Kind, Tally
from .speed import speed_of

__all__ = ["LEVELS", "DeviceLost", "conform", "operators_of", "try_case"]

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


class DeviceLost(RuntimeError):
    """The device takes no more work from this process, as a GPU after a kernel that went astray."""


def operators_of(level: str) -> tuple[str, ...]:
    """The operators of a level. Raises ValueError for one that is unknown."""
    if level not in LEVELS:
        raise ValueError(f"there is no level {level!r}; there are {', '.join(LEVELS)}")
    return LEVELS[level]


def conform(
    device: str,
    ops: Iterable[str],
    cases: Level = "quick",
    *,
    kernels: Collection[str] | None = None,
    beyond: bool = False,
    timed: bool = False,
) -> Iterator[KernelTrial]:
    """Tries the kernels of a device for some operators, best first, the reference last.

    cases: `full` for the long lists of sizes. kernels: the names of those to try (all). beyond: also more than 2^31
    elements, gigabytes each. timed: with their speed. Raises ValueError for an operator that is not there, and
    DeviceLost after a kernel that left the device unusable.
    """
    for op in dict.fromkeys(ops):
        if op not in OPS:
            raise ValueError(f"there is no operator {op!r}; there are {', '.join(OPS)}")
        known: dict[str, list[object]] = {}
        for kernel in kernels_for(op, device):
            if kernel.unavailable is None and (kernels is None or kernel.name in kernels):
                trial = _tried(Subject(OPS[op], device, kernel, cases, known), beyond)
                if timed:
                    _time(trial, device)
                yield trial
                if trial.failures and (error := _lost(device)) is not None:
                    first = trial.failures[0]
                    raise DeviceLost(
                        f"{device} takes no more work from this process after {op}, {kernel.name}: "
                        f"{first.aspect}, {first.case}: {error}"
                    )


def try_case(op: str, device: str, kernel: str, aspect: str, case: str, cases: Level = "full") -> list[str]:
    """What is wrong with one case of one kernel, in sentences; nothing where it is right.

    aspect: what is tried, as a failure names it. Raises ValueError for a kernel, an aspect or a case that is not there.
    """
    row, aspects = kernel_named(kernel, op, device), ASPECTS | ON_DEMAND
    if aspect not in aspects:
        raise ValueError(f"there is no aspect {aspect!r}; there are {', '.join(aspects)}")
    attempts = aspects[aspect](Subject(OPS[op], device, row, cases))
    found = next((attempt for attempt in attempts if attempt.case == case), None)
    if found is None:
        raise ValueError(f"{op} has no case {case!r} of {aspect}")
    return list(found.outcome().sentences)


def _tried(subject: Subject, beyond: bool) -> KernelTrial:
    trial = KernelTrial(subject.op.name, subject.kernel.name, _kind(subject.kernel))
    for aspect, attempts in (ASPECTS | ON_DEMAND if beyond else ASPECTS).items():
        try:
            for attempt in attempts(subject):
                _note(trial, subject, aspect, attempt)
        except (Exception, SystemExit) as error:  # noqa: BLE001  a device may fail in making the arguments
            sentence = f"no arguments for it: {type(error).__name__}: {error}"
            trial.failures.append(_failure(subject, aspect, "its cases", sentence))
    if not trial.failures and not trial.aspects["agreement"].passed:
        program = f"import bnb_core\nbnb_core.explain({subject.op.name!r}, device={subject.device!r})"
        trial.failures.append(Failure("agreement", "all", ("it refuses every case of its operator",), program))
    return trial


def _lost(device: str) -> str | None:
    """What a device says that takes no more work; None where it does."""
    module = getattr(torch, device, None)
    if not getattr(module, "is_available", lambda: False)():
        return None  # it never took any
    try:
        getattr(module, "synchronize", lambda: None)()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def _time(trial: KernelTrial, device: str) -> None:
    try:
        trial.speed = speed_of(trial.op, device, trial.kernel)
    except (Exception, SystemExit) as error:  # noqa: BLE001  a vendor's kernel may raise anything
        arguments = f"{trial.op!r}, {device!r}, {trial.kernel!r}"
        program = f"import bnb_core\nfrom bnb_core.conformance import speed_of\nprint(speed_of({arguments}))"
        sentence = f"it raised {type(error).__name__}: {error}"
        trial.failures.append(Failure("times", "larger arguments", (sentence,), program))


def _kind(kernel: Kernel) -> Kind:
    return "reference" if kernel.is_reference else "native" if kernel.is_native else "composed"


def _note(trial: KernelTrial, subject: Subject, aspect: str, attempt: Attempt) -> None:
    outcome = attempt.outcome()
    tallies = [trial.aspects.setdefault(aspect, Tally())]
    if aspect == "agreement":
        tallies.append(trial.dtypes.setdefault(attempt.dtype, Tally()))
    for tally in tallies:
        tally.passed += not (outcome.sentences or outcome.refused)
        tally.refused += outcome.refused
        tally.failed += bool(outcome.sentences)
        tally.share = max(tally.share, outcome.share)
    if outcome.sentences:
        trial.failures.append(_failure(subject, aspect, attempt.case, *outcome.sentences))


def _failure(subject: Subject, aspect: str, case: str, *sentences: str) -> Failure:
    op, device, kernel = subject.op.name, subject.device, subject.kernel.name
    arguments = ", ".join(map(repr, (op, device, kernel, aspect, case, subject.level)))
    program = f"import bnb_core\nfrom bnb_core.conformance import try_case\nprint(*try_case({arguments}), sep='\\n')"
    return Failure(aspect, case, sentences, program)
