"""Operators under torch.compile and torch.export: one graph, symbolic and data-dependent sizes, run-time choice."""

from __future__ import annotations

import io

import pytest
import torch
from torch._higher_order_ops.auto_functionalize import can_auto_functionalize

from bnb_core import ops_registry

ops = torch.ops.bnb_core


def weight(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(24, 64, generator=generator).to(device)
    return ops.quantize_4bit(W, 64, "nf4", torch.uint8)


class Gemm(torch.nn.Module):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        packed, absmax = weight(device)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.gemm_4bit(x, self.packed, (24, 64), self.absmax, 64, "nf4")


def test_dynamic_rows_compile_once(device: torch.device) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    module = Gemm(device)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for rows in (2, 3, 17, 64):
        x = torch.randn(rows, 64, device=device)
        assert torch.equal(compiled(x), module(x))
    assert len(graphs) == 1


def test_rows_known_only_at_run_time(device: torch.device) -> None:
    module = Gemm(device)

    def positive_rows(x: torch.Tensor) -> torch.Tensor:
        return module(x[torch.nonzero(x[:, 0] > 0).view(-1)])

    x = torch.randn(32, 64, device=device)
    compiled = torch.compile(positive_rows, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert torch.equal(compiled(x), positive_rows(x))


@pytest.mark.parametrize("threshold", [0.0, 3.0])
def test_outlier_columns_are_a_data_dependent_size(threshold: float, device: torch.device) -> None:
    def quantized(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, stats, cols = ops.int8_vectorwise_quant(x, threshold)
        return q, stats, torch.zeros(1, dtype=torch.int64, device=device) if cols is None else cols + 1

    x = torch.randn(16, 64, device=device)
    compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for got, want in zip(compiled(x), quantized(x), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_rows_saved_and_loaded(strict: bool, device: torch.device) -> None:
    module = Gemm(device)
    rows = torch.export.Dim("rows", min=2, max=4096)
    args = (torch.randn(4, 64, device=device),)
    program = torch.export.export(module, args, dynamic_shapes={"x": {0: rows}}, strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for count in (2, 5, 100):
        x = torch.randn(count, 64, device=device)
        assert torch.equal(loaded(x), module(x))


def test_exported_program_chooses_its_kernel_at_run_time(device: torch.device) -> None:
    module = Gemm(device)
    x = torch.randn(4, 64, device=device)
    loaded = torch.export.export(module, (x,)).module()
    ops_registry.reset_kernel_counts()
    with ops_registry.force("reference"):
        loaded(x)
    assert ops_registry.kernel_counts() == {("gemm_4bit", device.type, "reference"): 1}


def test_dynamic_weight_shape(device: torch.device) -> None:
    def decoded(packed: torch.Tensor, absmax: torch.Tensor, rows: int) -> torch.Tensor:
        return ops.dequantize_4bit(packed, absmax, 64, "nf4", (rows, 64), torch.float32)

    packed, absmax = weight(device)
    compiled = torch.compile(decoded, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (24, 12, 6):
        args = (packed[: rows * 32], absmax[:rows], rows)
        assert torch.equal(compiled(*args), decoded(*args))


@pytest.mark.skipif(
    not can_auto_functionalize(ops.optimizer_step_32bit.default),
    reason="this torch traces no optional list that is written",
)
@pytest.mark.parametrize("states", [1, 2])
def test_list_step_compiles_and_mutates(states: int, device: torch.device) -> None:
    """The list form in one graph, its optional list of second states given and not given."""
    rule = {1: "lion", 2: "adam"}[states]

    def step(grads, params, state1, state2, count, lr):  # type: ignore[no-untyped-def]
        scalars = (0.9, 0.99, 0.0, 0.0, 1e-8, 0.0, 1.0)
        ops.optimizer_step_32bit(rule, grads, params, state1, state2, None, count + 1, lr, 0.0, *scalars)
        return params[0] * 2

    def arguments() -> tuple[object, ...]:
        generator = torch.Generator().manual_seed(3)
        grads, params = ([torch.randn(5, i + 3, generator=generator).to(device) for i in range(3)] for _ in range(2))
        zeros = [[torch.zeros_like(p) for p in params] for _ in range(states)]
        on_device = torch.zeros((), device=device), torch.full((), 0.1, device=device)
        return grads, params, zeros[0], zeros[1] if states == 2 else None, *on_device

    eager, traced = arguments(), arguments()
    want = step(*eager)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(*traced)
    assert torch.equal(got, want)
    for a, b in zip(torch.utils._pytree.tree_leaves(traced), torch.utils._pytree.tree_leaves(eager), strict=True):
        assert a is b or torch.equal(a, b)


@pytest.mark.skipif(
    not hasattr(torch._C._dynamo.eval_frame, "set_code_exec_strategy"), reason="this torch cannot hide frames"
)
def test_operators_outside_of_a_graph_are_not_traced(device: torch.device) -> None:
    def broken(codes: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
        try:
            torch._dynamo.graph_break()
            return ops.int8_vectorwise_dequant(codes, stats)
        finally:
            pass

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    codes, stats = torch.ones(4, 8, dtype=torch.int8, device=device), torch.ones(4, device=device)
    assert torch.equal(torch.compile(broken, backend="eager")(codes, stats), broken(codes, stats))
    assert torch._dynamo.utils.counters["frames"]["total"] == 1


def test_inductor_runs_what_eager_runs(device: torch.device) -> None:
    """The default compiler of torch.compile, over operators alone: it lays out their inputs and outputs itself."""
    module = Gemm(device)

    def step(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, stats, _ = ops.int8_vectorwise_quant_mask(module(x), 3.0)
        return q, stats

    x = torch.randn(5, 64, device=device)
    for got, want in zip(torch.compile(step, fullgraph=True)(x), step(x), strict=True):
        assert torch.equal(got, want)
