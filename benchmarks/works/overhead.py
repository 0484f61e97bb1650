"""What a call costs beside its work: operators on 16 elements and a layer on one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bnb_core.nn import LinearNF4
from bnb_core.ops_registry import OPS, kernel_counts, kernels_for
from bnb_core.ops_registry.codebooks import dynamic_map
from bnb_core.ops_registry.signature import signature_of

from ..work import Budget, Contestant, Family, Run, Work
from .common import BITSANDBYTES, OURS, op_of
from .sizes import Sizes

__all__ = ["families"]

N = 16
BLOCKSIZE = 64

Args = tuple[Any, ...]


@cache
def _library() -> torch.library.Library:
    """Operators that do nothing but allocate their outputs, in Python: what torch itself takes for a call."""
    library = torch.library.Library("bnb_core_benchmark", "DEF")
    library.define("one(Tensor A) -> Tensor")
    library.define("two(Tensor A) -> (Tensor, Tensor)")
    library.impl("one", torch.empty_like, "CPU")
    library.impl("two", lambda A: (torch.empty_like(A), torch.empty_like(A)), "CPU")
    return library


def _trivial(name: str) -> Callable[[Args], Run]:
    def make(args: Args) -> Run:
        _library()
        op = getattr(torch.ops.bnb_core_benchmark, name)
        return lambda: op(args[0])

    return make


def _add(args: Args) -> Run:
    a = torch.ones(N)
    return lambda: torch.add(a, a)


def _op(package: str, name: str) -> Callable[[Args], Run]:
    def make(args: Args) -> Run:
        op = op_of(package, name)
        return lambda: op(*args)

    return make


def _signature(name: str) -> Callable[[Args], Run]:
    def make(args: Args) -> Run:
        signature = signature_of(OPS[name].parsed.arguments)
        return lambda: signature(*args)

    return make


def _check(name: str) -> Callable[[Args], Run]:
    def make(args: Args) -> Run:
        check = OPS[name].check
        return lambda: check(*args)

    return make


def _kernel(name: str) -> Callable[[Args], Run]:
    def make(args: Args) -> Run:
        before = kernel_counts()
        op_of(OURS, name)(*args)
        (ran,) = (row for row, calls in kernel_counts().items() if calls > before.get(row, 0))
        function = next(row.function for row in kernels_for(name, "cpu") if row.name == ran[-1])
        return lambda: function(*args)

    return make


def _first(result: Tensor | Sequence[Tensor]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def _blockwise() -> Args:
    return torch.randn(N), dynamic_map(), BLOCKSIZE


def _blockwise_codes() -> Args:
    A, code, blocksize = _blockwise()
    q, absmax = torch.ops.bnb_core.quantize_blockwise(A, code, blocksize)
    return q, absmax, code, blocksize, torch.float32


def _fourbit() -> Args:
    return torch.randn(N), BLOCKSIZE, "nf4", torch.uint8


def _fourbit_codes() -> Args:
    A, blocksize, quant_type, storage = _fourbit()
    packed, absmax = torch.ops.bnb_core.quantize_4bit(A, blocksize, quant_type, storage)
    return packed, absmax, blocksize, quant_type, [N], torch.float32


def _row() -> Args:
    return torch.randn(1, 64), torch.randn(64, 64)


def _ours_layer(args: Args) -> Run:
    x, W = args
    layer = LinearNF4(64, 64, compress_statistics=False)
    layer.load_state_dict({"weight": W, "bias": torch.zeros(64)})
    layer.to("cpu")
    return lambda: layer(x)


def _bitsandbytes_layer(args: Args) -> Run:
    from bitsandbytes.nn import LinearNF4, Params4bit

    x, W = args
    layer = LinearNF4(64, 64, compress_statistics=False)
    layer.weight = Params4bit(W, requires_grad=False, compress_statistics=False, quant_type="nf4")
    torch.nn.init.zeros_(layer.bias)
    layer.to("cpu").eval()
    return lambda: layer(x)


def _torch_layer(args: Args) -> Run:
    x, W = args
    layer = torch.nn.Linear(64, 64)
    layer.load_state_dict({"weight": W, "bias": torch.zeros(64)})
    return lambda: layer(x)


def _of_op(name: str, inputs: Callable[[], Args], outputs: str, microseconds: float) -> Work:
    contestants = (
        Contestant(OURS, _op(OURS, name), read=_first),
        Contestant("trivial op", _trivial(outputs)),
        Contestant("torch.add", _add),
        Contestant(BITSANDBYTES, _op(BITSANDBYTES, name), 0.05, BITSANDBYTES, _first),
        # What a call consists of, beside the trivial op: those that are new are checked, all have their signature made.
        Contestant("its check", _check(name)),
        Contestant("its signature", _signature(name)),
        Contestant("its kernel", _kernel(name)),
    )
    return Work(f"overhead/{name}/{N}", inputs, contestants, (Budget(microseconds),))


def families(sizes: Sizes) -> list[Family]:
    """Operators of one and of two outputs, and the smallest layer."""
    layer = (
        Contestant(OURS, _ours_layer),
        Contestant("trivial op", _trivial("one")),
        Contestant("torch.add", _add),
        Contestant(BITSANDBYTES, _bitsandbytes_layer, 0.02, BITSANDBYTES),
        Contestant("torch.nn.Linear", _torch_layer, 0.25),
    )
    works = [
        _of_op("dequantize_blockwise", _blockwise_codes, "one", 6),
        _of_op("dequantize_4bit", _fourbit_codes, "one", 6),
        _of_op("quantize_blockwise", _blockwise, "two", 10),
        _of_op("quantize_4bit", _fourbit, "two", 10),
        Work("overhead/Linear4bit/64x64/M=1", _row, layer, (Budget(15),)),
        # As in training: the bias has a gradient.
        Work("overhead/Linear4bit/64x64/M=1/grad", _row, [replace(c, setting=torch.enable_grad) for c in layer]),
    ]
    return [Family("Overhead of a call", works)]
