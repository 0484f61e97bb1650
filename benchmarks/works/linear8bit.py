"""Linear layers with a weight in int8 (LLM.int8()), next to the bf16 layers that they replace and to other packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bnb_core.nn import Linear8bitLt

from ..work import Contestant, Family, Run, Target, Work
from .common import BITSANDBYTES, OURS
from .sizes import MODEL_SHAPES, Sizes

__all__ = ["families"]

TORCH = "torch linear"


@dataclass(frozen=True)
class Inputs:
    """Rows `[M, K]`, some columns of which may be outliers, and a weight `[N, K]`, both bf16."""

    x: Tensor
    W: Tensor


def _inputs(M: int, N: int, K: int, outliers: bool) -> Callable[[], Inputs]:
    def make() -> Inputs:
        x = torch.randn(M, K).clamp(-5, 5)
        if outliers:
            x[:, :: K // 8] *= 10
        return Inputs(x.bfloat16(), (0.02 * torch.randn(N, K)).bfloat16())

    return make


def _ours(threshold: float, inputs: Inputs) -> Run:
    N, K = inputs.W.shape
    layer = Linear8bitLt(K, N, bias=False, has_fp16_weights=False, threshold=threshold)
    layer.load_state_dict({"weight": inputs.W})
    layer.to("cpu")
    return lambda: layer(inputs.x)


def _bitsandbytes(threshold: float, inputs: Inputs) -> Run:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    N, K = inputs.W.shape
    layer = Linear8bitLt(K, N, bias=False, has_fp16_weights=False, threshold=threshold)
    layer.weight = Int8Params(inputs.W, requires_grad=False, has_fp16_weights=False)
    layer.to("cpu").eval()
    return lambda: layer(inputs.x)


def _torch(inputs: Inputs) -> Run:
    return lambda: torch.nn.functional.linear(inputs.x, inputs.W)


def _torchao(inputs: Inputs) -> Run:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    N, K = inputs.W.shape
    layer = torch.nn.Linear(K, N, bias=False, dtype=torch.bfloat16)
    layer.load_state_dict({"weight": inputs.W})
    quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    return lambda: layer(inputs.x)


def _int_mm(inputs: Inputs) -> Run:
    N, K = inputs.W.shape
    A = torch.randint(-127, 128, (len(inputs.x), K), dtype=torch.int8)
    B = torch.randint(-127, 128, (N, K), dtype=torch.int8).t()
    return lambda: torch._int_mm(A, B)


def _contestants(threshold: float) -> tuple[Contestant, ...]:
    theirs = partial(_bitsandbytes, threshold)
    return (
        Contestant(OURS, partial(_ours, threshold)),
        Contestant(TORCH, _torch, 0.05),
        Contestant(BITSANDBYTES, theirs, 0.05, BITSANDBYTES, threads_of=BITSANDBYTES),
        # It knows no outliers, and rounds all columns by the largest.
        *(() if threshold else (Contestant("torchao", _torchao, 0.05, "torchao"),)),
        Contestant("_int_mm", _int_mm),
    )


def families(sizes: Sizes) -> list[Family]:
    """A square weight at each number of rows, with and without outlier columns, and weights of models."""

    def work(M: int, shape: tuple[int, int], threshold: float = 0.0) -> Work:
        K, N = map(sizes.width, shape)
        name = f"linear8bit/{K}x{N}/M={M}/bf16" + ("/outliers" if threshold else "")
        targets = (Target(BITSANDBYTES, 4 if M == 16 else 1), Target(TORCH, 1))
        return Work(name, _inputs(M, N, K, threshold > 0), _contestants(threshold), targets)

    works = [work(M, (4096, 4096)) for M in (1, 16, 256)]
    works += [work(M, (4096, 4096), threshold=6.0) for M in (1, 16, 256)]
    works += [work(M, shape) for shape in MODEL_SHAPES for M in (1, 16)]
    return [Family("8-bit linear layer, bf16", works)]
