"""Gradient-norm percentiles and quantile estimates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..cases import FLOATS, BadCase, Case, Maker
from ..checks import Check
from ..op import Op, Result, define
from ..tolerance import Tolerance

GNORM_HISTORY = 100

_clipping = Check("percentile_clipping")
_quantiles = Check("estimate_quantiles")


def _check_clipping(grad: Tensor, gnorm_vec: Tensor, step: int, percentile: int = 5) -> None:
    _clipping.dtype("grad", grad, FLOATS)
    _clipping.dtype("gnorm_vec", gnorm_vec, (torch.float32,))
    _clipping.shape("gnorm_vec", gnorm_vec, (GNORM_HISTORY,))
    _clipping.at_least("step", step, 0)
    in_range = 0 <= percentile < GNORM_HISTORY
    _clipping.that(in_range, lambda: f"percentile is {percentile}, expected 0 to {GNORM_HISTORY - 1}")
    _clipping.one_device(grad, gnorm_vec=gnorm_vec)


def _clipping_results(grad: Tensor, gnorm_vec: Tensor, step: int, percentile: int = 5) -> tuple[Result, ...]:
    return (Result((), torch.float32),) * 3


def _check_quantiles(A: Tensor, offset: float = 1 / 512, num_quantiles: int = 256) -> None:
    _quantiles.dtype("A", A, FLOATS)
    _quantiles.that(A.numel() >= 1, lambda: "A is empty, expected at least 1 element")
    _quantiles.that(0 <= offset < 0.5, lambda: f"offset is {offset}, expected at least 0 and below 0.5")
    _quantiles.at_least("num_quantiles", num_quantiles, 1)


def _quantiles_results(A: Tensor, offset: float = 1 / 512, num_quantiles: int = 256) -> tuple[Result]:
    return (Result((num_quantiles,), torch.float32),)


def _clipping_cases(make: Maker) -> Iterator[Case]:
    for dtype in FLOATS:
        for step, percentile in ((1, 5), (100, 50), (57, 0), (250, 99)):
            args = (make.normal(7, 33, dtype=dtype), make.positive(GNORM_HISTORY) * 300, step, percentile)
            yield Case(f"{dtype} step {step} percentile {percentile}", args)
    yield Case("small history", (make.normal(100), make.positive(GNORM_HISTORY) * 1e-3, 3))
    yield Case("zero gradient", (make.normal(9) * 0, make.positive(GNORM_HISTORY), 3))
    yield Case("strided", (make.strided(make.normal(9, 8)), make.positive(GNORM_HISTORY), 3))


def _quantiles_cases(make: Maker) -> Iterator[Case]:
    for dtype in FLOATS:
        for count in (1, 2, 1000, 4099):
            yield Case(f"{dtype} {count} elements", (make.normal(count, dtype=dtype),))
    for number in (1, 16, 255):
        yield Case(f"{number} quantiles", (make.normal(999), 0.01, number))
    yield Case("offset 0", (make.normal(999), 0.0))
    yield Case("strided", (make.strided(make.normal(40, 33)),))


def _bad_clipping(make: Maker) -> Iterator[BadCase]:
    grad, history = make.normal(10), make.positive(GNORM_HISTORY)
    yield BadCase("grad dtype", (grad.double(), history, 1), "grad is float64, expected float32")
    yield BadCase("gnorm_vec dtype", (grad, history.half(), 1), "gnorm_vec is float16, expected float32")
    yield BadCase("gnorm_vec shape", (grad, history[:99], 1), r"gnorm_vec has shape \(99,\), expected \(100,\)")
    yield BadCase("step", (grad, history, -1), "step is -1, expected at least 0")
    yield BadCase("percentile 100", (grad, history, 1, 100), "percentile is 100, expected 0 to 99")
    yield BadCase("percentile -1", (grad, history, 1, -1), "percentile is -1, expected 0 to 99")
    yield BadCase("device", (grad, history.to("meta"), 1), "is on .*, expected .* as the other tensors")


def _bad_quantiles(make: Maker) -> Iterator[BadCase]:
    A = make.normal(10)
    yield BadCase("A dtype", (A.double(),), "A is float64, expected float32")
    yield BadCase("empty", (A[:0],), "A is empty, expected at least 1 element")
    yield BadCase("offset 0.5", (A, 0.5), "offset is 0.5, expected at least 0 and below 0.5")
    yield BadCase("offset -1", (A, -1.0), "offset is -1.0, expected at least 0 and below 0.5")
    yield BadCase("num_quantiles", (A, 0.01, 0), "num_quantiles is 0, expected at least 1")


define(
    Op(
        schema="percentile_clipping(Tensor grad, Tensor(a!) gnorm_vec, int step, int percentile=5)"
        " -> (Tensor current_gnorm, Tensor clip_value, Tensor gnorm_scale)",
        check=_check_clipping,
        results=_clipping_results,
        cases=_clipping_cases,
        bad_cases=_bad_clipping,
        tolerance=Tolerance({torch.float32: 1e-5}),
        doc="""The scale that clips a gradient to a percentile of the last 100 gradient norms.

        gnorm_vec: fp32 `[100]` of squared norms; slot `step % 100` receives that of grad. current_gnorm: the norm of
        grad. clip_value: root of the percentile-th smallest entry. gnorm_scale: `clip_value / current_gnorm` where that
        is below 1, else 1. All 0-dim fp32 on grad's device.
        """,
    )
)

define(
    Op(
        schema="estimate_quantiles(Tensor A, float offset=0.001953125, int num_quantiles=256) -> Tensor",
        check=_check_quantiles,
        results=_quantiles_results,
        cases=_quantiles_cases,
        bad_cases=_bad_quantiles,
        tolerance=Tolerance({torch.float32: 1e-6}),
        doc="""Quantiles of the flattened A at positions evenly spaced from `offset` to `1 - offset`, with linear
        interpolation.

        Result: fp32 `[num_quantiles]`, ascending.
        """,
    )
)
