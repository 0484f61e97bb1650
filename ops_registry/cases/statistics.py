"""Inputs of the statistics operators."""

from __future__ import annotations

from collections.abc import Iterator

from ..formats import FLOATS, GNORM_HISTORY
from .maker import BadCase, Case, Maker


def clipping_cases(make: Maker) -> Iterator[Case]:
    for dtype in FLOATS:
        for step, percentile in ((1, 5), (100, 50), (57, 0), (250, 99)):
            args = (make.normal(7, 33, dtype=dtype), make.positive(GNORM_HISTORY) * 300, step, percentile)
            yield Case(f"{dtype} step {step} percentile {percentile}", args)
    yield Case("small history", (make.normal(100), make.positive(GNORM_HISTORY) * 1e-3, 3))
    yield Case("zero gradient", (make.normal(9) * 0, make.positive(GNORM_HISTORY), 3))
    yield Case("strided", (make.strided(make.normal(9, 8)), make.positive(GNORM_HISTORY), 3))


def quantiles_cases(make: Maker) -> Iterator[Case]:
    for dtype in FLOATS:
        for count in (1, 2, 1000, 4099):
            yield Case(f"{dtype} {count} elements", (make.normal(count, dtype=dtype),))
    for number in (1, 16, 255):
        yield Case(f"{number} quantiles", (make.normal(999), 0.01, number))
    yield Case("offset 0", (make.normal(999), 0.0))
    yield Case("strided", (make.strided(make.normal(40, 33)),))


def bad_clipping(make: Maker) -> Iterator[BadCase]:
    grad, history = make.normal(10), make.positive(GNORM_HISTORY)
    yield BadCase("grad dtype", (grad.double(), history, 1), "grad is float64, expected float32")
    yield BadCase("gnorm_vec dtype", (grad, history.half(), 1), "gnorm_vec is float16, expected float32")
    yield BadCase("gnorm_vec shape", (grad, history[:99], 1), r"gnorm_vec has shape \(99,\), expected \(100,\)")
    yield BadCase("step", (grad, history, -1), "step is -1, expected at least 0")
    yield BadCase("percentile 100", (grad, history, 1, 100), "percentile is 100, expected 0 to 99")
    yield BadCase("percentile -1", (grad, history, 1, -1), "percentile is -1, expected 0 to 99")
    yield BadCase("device", (grad, history.to("meta"), 1), "is on .*, expected .* as the other tensors")


def bad_quantiles(make: Maker) -> Iterator[BadCase]:
    A = make.normal(10)
    yield BadCase("A dtype", (A.double(),), "A is float64, expected float32")
    yield BadCase("empty", (A[:0],), "A is empty, expected at least 1 element")
    yield BadCase("offset 0.5", (A, 0.5), "offset is 0.5, expected at least 0 and below 0.5")
    yield BadCase("offset -1", (A, -1.0), "offset is -1.0, expected at least 0 and below 0.5")
    yield BadCase("num_quantiles", (A, 0.01, 0), "num_quantiles is 0, expected at least 1")
