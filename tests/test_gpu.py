"""What only a GPU can show of its kernels: no waiting, CUDA graphs, streams, several devices, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from conftest import DEVICE
from torch import Tensor
from torch.utils._pytree import tree_map_only

import bnb_core
from bnb_core import ops_registry
from bnb_core.ops_registry import OPS, force
from bnb_core.ops_registry.cases import fresh, tensors
from bnb_core.ops_registry.tolerance import differences

pytestmark = [
    pytest.mark.usefixtures("nothing_forced"),
    pytest.mark.skipif(
        DEVICE.type != "cuda" or not torch.cuda.is_available(), reason="the device is no NVIDIA or AMD GPU"
    ),
]

# The shapes of their results depend on data.
WAITING = {"int8_vectorwise_quant", "int8_double_quant"}


def rows() -> list[tuple[str, str]]:
    """Every operator with every kernel of its own on this device."""
    return [
        (op, row.name) for op in OPS for row in ops_registry.kernels_for(op, "cuda") if row.name.startswith("cuda/")
    ]


def arguments(op: str, kernel: str) -> Iterator[tuple[Any, ...]]:
    """What that kernel takes."""
    row = ops_registry.kernel_named(kernel, op, "cuda")
    for case in OPS[op].each_case("cuda"):
        args = OPS[op].complete(case.args)
        if row.refuses(args) is None and all(t.numel() for t in tensors(args)):
            yield args


def call(op: str, kernel: str, *args: Any) -> Any:
    """The operator with that kernel."""
    with force(kernel):
        return getattr(torch.ops.bnb_core, op).default(*args)


def call_of(op: str, kernel: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The operator with that kernel, and arguments that it takes."""
    return partial(call, op, kernel), next(arguments(op, kernel))


def outcome(op: str, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return OPS[op].outcome(call(*args), args)


@pytest.mark.parametrize(("op", "kernel"), rows())
def test_a_call_does_not_wait_for_the_device(op: str, kernel: str) -> None:
    if op in WAITING:
        pytest.skip("how many columns have outliers decides the shape of a result")
    call, args = call_of(op, kernel)
    call(*fresh(args))
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(*fresh(args))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("op", "kernel"), rows())
def test_a_graph_captures_a_call(op: str, kernel: str) -> None:
    if op in WAITING:
        pytest.skip("how many columns have outliers decides the shape of a result")
    call, args = call_of(op, kernel)
    want = outcome(op, call, fresh(args))
    static = fresh(args)
    start = [t.clone() for t in tensors(static)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call(*fresh(args))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = call(*static)
    for _ in range(2):
        for tensor, before in zip(tensors(static), start, strict=True):
            tensor.copy_(before)
        graph.replay()
        torch.cuda.synchronize()
        got = OPS[op].outcome(result, static)
        assert not differences(got, want, OPS[op].tolerance)


@pytest.mark.parametrize(("op", "kernel"), rows())
def test_a_call_takes_any_address(op: str, kernel: str) -> None:
    """A tensor may begin one element after an address that allows wide accesses, which a GPU refuses elsewhere."""

    def shifted(tensor: Tensor) -> Tensor:
        return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)

    for args in arguments(op, kernel):
        want = outcome(op, partial(call, op, kernel), fresh(args))
        got = outcome(op, partial(call, op, kernel), tree_map_only(Tensor, shifted, args))
        assert not differences(got, want, OPS[op].tolerance)


@pytest.mark.parametrize(("op", "kernel"), rows())
def test_a_call_runs_on_the_current_stream(op: str, kernel: str) -> None:
    """What it reads is written late on that stream: on another one it would come too early."""
    call, args = call_of(op, kernel)
    want = outcome(op, call, fresh(args))
    late = fresh(args)
    kept = [t.clone() for t in tensors(late)]
    for tensor in tensors(late):
        tensor.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for tensor, value in zip(tensors(late), kept, strict=True):
            tensor.copy_(value)
        got = outcome(op, call, late)
    stream.synchronize()
    assert not differences(got, want, OPS[op].tolerance)


@pytest.mark.parametrize(("op", "kernel"), rows())
def test_a_call_runs_on_the_device_of_its_arguments(op: str, kernel: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    call, args = call_of(op, kernel)
    want = outcome(op, call, fresh(args))

    got = outcome(op, call, tree_map_only(Tensor, lambda tensor: tensor.to("cuda:1"), args))
    assert {tensor.device for tensor in tensors(got)} == {torch.device("cuda:1")}
    assert torch.cuda.current_device() == 0
    assert not differences(got, want, OPS[op].tolerance)


def test_paged_state_is_that_of_ordinary_memory() -> None:
    if ops_registry.paged_memory(DEVICE) is None:
        pytest.skip("no backend offers paged memory for this device")
    results = []
    for kind in (bnb_core.optim.AdamW8bit, bnb_core.optim.PagedAdamW8bit):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(1 << 18, device=DEVICE))
        optimizer = kind([p], lr=1e-2)
        for _ in range(3):
            p.grad = torch.sin(p.detach())
            optimizer.step()
        results.append(p.detach())
    assert torch.equal(*results)
