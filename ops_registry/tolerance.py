"""How far a kernel may be from the reference, and the comparison that the tests and the conformance run share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

__all__ = ["EXACT", "PRODUCT", "Comparison", "Tolerance", "compare", "differences"]


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted distance to the reference.

    relative: per floating-point dtype, `max|a - b| / max|b|` over a tensor; a dtype that is absent must agree in every
    bit.
    codes: share of the elements of a uint8 state tensor that may lie one code apart; other integers must always be
    equal.
    """

    relative: Mapping[torch.dtype, float] = field(default_factory=dict)
    codes: float = 0.0

    def within(self, ceiling: Tolerance) -> bool:
        """True where nothing that this tolerance accepts is refused by `ceiling`."""
        return self.codes <= ceiling.codes and all(
            bound <= ceiling.relative.get(dtype, 0.0) for dtype, bound in self.relative.items()
        )


EXACT = Tolerance()

# Products of a weight that is decoded to the activations' dtype first stay within these.
PRODUCT = Tolerance({torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 2e-2})


@dataclass(frozen=True)
class Comparison:
    """share: the largest distance found, as a share of what is allowed; 0 where all is the same, inf where nothing but
    that is allowed. sentences: one for each place that is beyond.
    """

    share: float = 0.0
    sentences: tuple[str, ...] = ()


def compare(got: object, want: object, tolerance: Tolerance, name: str = "result") -> Comparison:
    """How far `got` (tensors, None, or sequences of them) is from `want`."""
    if isinstance(want, Sequence) and isinstance(got, Sequence):
        if len(got) != len(want):
            return _beyond(f"{name}: {len(got)} values, expected {len(want)}")
        pairs = enumerate(zip(got, want, strict=True))
        parts = [compare(a, b, tolerance, f"{name}[{i}]") for i, (a, b) in pairs]
        sentences = tuple(sentence for part in parts for sentence in part.sentences)
        return Comparison(max((part.share for part in parts), default=0.0), sentences)
    if not isinstance(want, torch.Tensor) or not isinstance(got, torch.Tensor):
        if got is None and want is None:
            return Comparison()
        return _beyond(f"{name}: {type(got).__name__}, expected {type(want).__name__}")
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return _beyond(f"{name}: {got.dtype} {tuple(got.shape)}, expected {want.dtype} {tuple(want.shape)}")
    return _compare_tensors(got.detach().cpu(), want.detach().cpu(), tolerance, name)


def differences(got: object, want: object, tolerance: Tolerance, name: str = "result") -> list[str]:
    """One sentence per place where `got` (tensors, None, or sequences of them) is not `want` within `tolerance`."""
    return list(compare(got, want, tolerance, name).sentences)


def _beyond(sentence: str, share: float = float("inf")) -> Comparison:
    return Comparison(share, (sentence,))


def _compare_tensors(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance, name: str) -> Comparison:
    if not want.is_floating_point():
        apart = (got.to(torch.int64) - want.to(torch.int64)).abs()
        allowed = int(tolerance.codes * want.numel()) if want.dtype == torch.uint8 else 0
        count = int((apart > 0).sum())
        if count > allowed or (count and int(apart.max()) > 1):
            farthest = int(apart.max())
            sentence = f"{name}: {count} of {want.numel()} integers differ by up to {farthest}, {allowed} may by 1"
            return _beyond(sentence, max(count / allowed, farthest) if allowed else float("inf"))
        return Comparison(count / allowed if allowed else 0.0)
    bound = tolerance.relative.get(want.dtype, 0.0)
    if bound == 0:
        same = (got == want) & (got.signbit() == want.signbit()) | (got.isnan() & want.isnan())
        if bool(same.all()):
            return Comparison()
        return _beyond(f"{name}: {int((~same).sum())} of {want.numel()} elements differ, none may")
    a, b = got.double(), want.double()
    if not torch.equal(a.isnan(), b.isnan()):
        count = int((a.isnan() != b.isnan()).sum())
        return _beyond(f"{name}: NaN stands in {count} elements of one and not of the other")
    # Infinities of equal sign agree; NaN agrees with NaN.
    error = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(0.0, posinf=torch.inf)
    scale = b.abs().nan_to_num(0.0, posinf=0.0)
    worst, largest = (float(t.max()) if t.numel() else 0.0 for t in (error, scale))
    share = worst / (bound * largest) if bound * largest else 0.0 if worst == 0 else float("inf")
    if worst > bound * largest:
        return _beyond(
            f"{name}: largest difference {worst:.3g} at magnitude {largest:.3g}, allowed {bound:g} relative", share
        )
    return Comparison(share)
