"""Gradient-norm percentiles and quantile estimates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import statistics as inputs
from ..checks import Check
from ..formats import FLOATS, GNORM_HISTORY
from ..op import Op, Result, define
from ..tolerance import Tolerance

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


define(
    Op(
        schema="percentile_clipping(Tensor grad, Tensor(a!) gnorm_vec, int step, int percentile=5)"
        " -> (Tensor current_gnorm, Tensor clip_value, Tensor gnorm_scale)",
        check=_check_clipping,
        results=_clipping_results,
        cases=inputs.clipping_cases,
        bad_cases=inputs.bad_clipping,
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
        cases=inputs.quantiles_cases,
        bad_cases=inputs.bad_quantiles,
        tolerance=Tolerance({torch.float32: 1e-6}),
        doc="""Quantiles of the flattened A at positions evenly spaced from `offset` to `1 - offset`, with linear
        interpolation.

        Result: fp32 `[num_quantiles]`, ascending.
        """,
    )
)
