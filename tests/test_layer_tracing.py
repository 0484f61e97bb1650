"""Every layer under torch.compile, torch.export, torch.func, autocast, checkpointing and saved-tensor hooks."""

from __future__ import annotations

import collections
import copy
import functools
import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_outliers import Aware
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import make_boxed_func
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, vmap
from torch.utils.checkpoint import checkpoint

from bnb_core import nn

IN, OUT = 128, 48
RELEASE = tuple(map(int, torch.__version__.split(".")[:2]))
# Older ones cannot trace a subclass of Parameter: the graph breaks at each layer.
ONE_GRAPH = RELEASE >= (2, 8)
needs_one_graph = pytest.mark.skipif(not ONE_GRAPH, reason="torch < 2.8 does not trace a subclass of Parameter")

SIZES = [(2, 3), (4, 7), (3, 11), (5, 2)]
BF16 = torch.bfloat16


def aware() -> torch.nn.Module:
    layer = Aware(IN, OUT)
    layer.outlier_dim = torch.tensor([7])
    layer(torch.zeros(1, IN))
    return layer


def parametrized() -> torch.nn.Module:
    layer = torch.nn.Linear(IN, OUT)
    nn.parametrize.replace_parameter_4bit(layer, "weight", compress_statistics=True)
    return layer


Make = Callable[[], torch.nn.Module]
LINEAR: dict[str, Make] = {
    "nf4": functools.partial(nn.LinearNF4, IN, OUT, compress_statistics=False),
    "nf4 nested": functools.partial(nn.LinearNF4, IN, OUT),
    "fp4": functools.partial(nn.LinearFP4, IN, OUT, bias=False, compress_statistics=False),
    "fp4 nested": functools.partial(nn.LinearFP4, IN, OUT, quant_storage=BF16),
    "nf4 computed in bf16": functools.partial(nn.LinearNF4, IN, OUT, compute_dtype=BF16),
    "int8": functools.partial(nn.Linear8bitLt, IN, OUT, has_fp16_weights=False),
    "int8, threshold": functools.partial(nn.Linear8bitLt, IN, OUT, has_fp16_weights=False, threshold=6.0),
    "int8 of a weight": functools.partial(nn.Linear8bitLt, IN, OUT),
    "int8 of a weight, threshold": functools.partial(nn.Linear8bitLt, IN, OUT, threshold=6.0),
    "fp8 mixed": functools.partial(nn.LinearFP8Mixed, IN, OUT),
    "fp8 global": functools.partial(nn.LinearFP8Global, IN, OUT),
    "switchback": functools.partial(nn.SwitchBackLinear, IN, OUT),
    "switchback by rows": functools.partial(nn.SwitchBackLinearVectorwise, IN, OUT),
    "outlier aware": aware,
    "parametrized": parametrized,
}
EMBEDDINGS: dict[str, Make] = {
    "embedding": functools.partial(nn.Embedding, IN, OUT),
    "stable embedding": functools.partial(nn.StableEmbedding, IN, OUT),
    "embedding int8": functools.partial(nn.Embedding8bit, IN, 64),
    "embedding nf4": functools.partial(nn.EmbeddingNF4, IN, 64),
    "embedding fp4": functools.partial(nn.EmbeddingFP4, IN, 64),
}
LAYERS = LINEAR | EMBEDDINGS
QUANTIZED = {name: make for name, make in LAYERS.items() if isinstance(make(), nn.QuantizedLayer)}
QUANTIZED = {name: make for name, make in QUANTIZED.items() if not name.startswith(("int8 of a weight", "switchback"))}

pytestmark = pytest.mark.filterwarnings("ignore:Linear4bit got an input in float32")


def over(layers: dict[str, Make]) -> Any:
    return pytest.mark.parametrize("make", layers.values(), ids=layers.keys())


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    counters.clear()


def inputs(layer: torch.nn.Module, device: torch.device, *lead: int) -> Tensor:
    """Indices, or activations with a column of outliers."""
    if isinstance(layer, torch.nn.Embedding):
        return torch.randint(IN, lead).to(device)
    x = torch.randn(*lead, IN)
    x[..., 7] *= 8
    return x.to(device).requires_grad_()


def small_model(device: torch.device) -> torch.nn.Sequential:
    """Layers of 4 and 8 bits with others between them."""
    first, *rest = EMBEDDINGS["embedding fp4"](), LINEAR["nf4 nested"](), LINEAR["int8, threshold"]()
    layers = [first, torch.nn.Linear(64, IN)]
    for layer in rest:
        layers += [layer, torch.nn.ReLU(), torch.nn.Linear(OUT, IN)]
    return torch.nn.Sequential(*layers).to(device)


def step(layer: Any, x: Tensor, module: torch.nn.Module | None = None) -> list[Tensor]:
    """Result and gradients: of the input, and of the parameters that have one."""
    parameters = [p for p in (module or layer).parameters() if p.requires_grad]
    wanted = [*([x] if x.requires_grad else []), *parameters]
    y = layer(x)
    return [y.detach(), *(torch.autograd.grad(y.float().square().sum(), wanted) if wanted else ())]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def counting(graphs: collections.Counter[str]) -> Callable[..., Any]:
    """A backend that runs graphs as they are and counts those that it is given, forward and backward."""

    def compiler(kind: str) -> Callable[..., Any]:
        def compiled(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            graphs[kind] += 1
            return make_boxed_func(graph.forward)

        return compiled

    backend: Callable[..., Any] = aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward"))
    return backend


# -- torch.compile -----------------------------------------------------------------------------------------------------


def graphs_for_all_sizes(layer: torch.nn.Module, dynamic: bool | None, device: torch.device) -> dict[str, int]:
    """How many graphs forward and backward take, each compared with eager mode."""
    graphs: collections.Counter[str] = collections.Counter()
    compiled = torch.compile(layer, dynamic=dynamic, backend=counting(graphs))
    for lead in SIZES:
        x = inputs(layer, device, *lead)
        expected = step(layer, x)
        assert_close(step(compiled, x, layer), expected)
    assert not counters["graph_break"]
    return dict(graphs)


def per_pass(layer: torch.nn.Module, times: int) -> dict[str, int]:
    """So many graphs forward, and as many backward where anything has a gradient."""
    no_gradient = isinstance(layer, (nn.Embedding4bit, nn.Embedding8bit))
    return {"forward": times} if no_gradient else {"forward": times, "backward": times}


@needs_one_graph
@over(LAYERS)
def test_one_graph_for_all_sizes(make: Make, device: torch.device) -> None:
    layer = make().to(device)
    assert graphs_for_all_sizes(layer, True, device) == per_pass(layer, 1)


@needs_one_graph
@over({name: LAYERS[name] for name in ("nf4 nested", "int8, threshold", "fp8 global", "parametrized", "embedding nf4")})
def test_the_second_size_is_compiled_as_dynamic_and_none_after_it(make: Make, device: torch.device) -> None:
    layer = make().to(device)
    assert graphs_for_all_sizes(layer, None, device) == per_pass(layer, 2)


@needs_one_graph
def test_the_default_compiler(device: torch.device) -> None:
    model = small_model(device)
    x = inputs(model[0], device, 3, 5)
    assert_close(step(torch.compile(model, fullgraph=True), x, model), step(model, x))


# -- torch.export ------------------------------------------------------------------------------------------------------


@needs_one_graph
@over(LAYERS)
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_exports_with_dynamic_sizes_saved_and_loaded(make: Make, strict: bool, device: torch.device) -> None:
    model = torch.nn.Sequential(make()).to(device)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.export.export(model, (inputs(model[0], device, 2, 3),), dynamic_shapes=(sizes,), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for lead in SIZES:
        x = inputs(model[0], device, *lead)
        with torch.no_grad():
            assert torch.equal(loaded(x), model(x))


@needs_one_graph
@over(QUANTIZED)
def test_export_leaves_the_layer_as_it_was(make: Make, device: torch.device) -> None:
    layer = make().to(device)
    x, weight = inputs(layer, device, 2, 3), layer.weight
    expected = layer(x)
    torch.export.export(layer, (x,), strict=False)
    assert layer.weight is weight
    assert torch.equal(layer(x), expected)
    copies = pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)
    for other in copies:
        program = torch.export.export(other, (x,), strict=False)
        assert torch.equal(program.module()(x), expected)


@needs_one_graph
@over(QUANTIZED)
def test_export_takes_the_statistics_of_the_weight_that_is_there(make: Make, device: torch.device) -> None:
    """Also where it came without an assignment, as loaders of big models do."""
    layer, other = make().to(device), make().to(device)
    layer._parameters["weight"] = other.weight
    x = inputs(layer, device, 2, 3)
    assert torch.equal(torch.export.export(layer, (x,), strict=False).module()(x), layer(x))


@needs_one_graph
@over(QUANTIZED)
def test_export_refuses_a_layer_that_is_not_quantized(make: Make, device: torch.device) -> None:
    layer = make()
    with pytest.raises(RuntimeError, match="the weight is not quantized yet"):
        torch.export.export(layer, (inputs(layer, device, 2, 3),), strict=False)


@pytest.mark.skipif(shutil.which("c++") is None, reason="AOTInductor needs a C++ compiler")
@pytest.mark.skipif(RELEASE < (2, 13), reason="torch < 2.13 packages no program with a subclass of Parameter")
def test_compiled_ahead_of_time(device: torch.device, tmp_path: Path) -> None:
    model = small_model(device)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with torch.no_grad():
        x = inputs(model[0], device, 2, 3)
        program = torch.export.export(model, (x,), dynamic_shapes=(sizes,), strict=False)
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(path)
        for lead in SIZES:
            x = inputs(model[0], device, *lead)
            torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)


# -- torch.func --------------------------------------------------------------------------------------------------------


@over(LAYERS)
def test_vmap(make: Make, device: torch.device) -> None:
    layer = make().to(device)
    x = inputs(layer, device, 3, 4).detach()
    single = torch.stack([layer(t) for t in x])
    assert torch.allclose(vmap(layer)(x), single, atol=1e-5)
    assert torch.allclose(vmap(layer, in_dims=1)(x.transpose(0, 1)), single, atol=1e-5)


@over(LINEAR)
def test_grad_and_vmap_of_it(make: Make, device: torch.device) -> None:
    layer = make().to(device)
    x = inputs(layer, device, 3, 4)

    def loss(t: Tensor) -> Tensor:
        return layer(t).square().sum()

    expected = torch.stack([torch.autograd.grad(loss(t), t)[0] for t in x.unbind()])
    x = x.detach()
    assert torch.allclose(torch.func.grad(loss)(x[0]), expected[0], atol=1e-5)
    assert torch.allclose(vmap(torch.func.grad(loss))(x), expected, atol=1e-4)
    assert torch.allclose(torch.func.grad(lambda t: vmap(loss)(t).sum())(x), expected, atol=1e-4)


@over({name: LINEAR[name] for name in ("nf4", "fp4", "int8, threshold", "int8 of a weight, threshold", "fp8 mixed")})
def test_grad_of_a_frozen_layer_compiles(make: Make, device: torch.device) -> None:
    layer = make().to(device).requires_grad_(False)
    x = inputs(layer, device, 2, 3).detach()
    gradient = torch.func.grad(lambda t: layer(t).square().sum())
    compiled = torch.compile(gradient, fullgraph=ONE_GRAPH, backend="aot_eager")
    assert_close([compiled(x).detach()], [gradient(x).detach()])


@needs_one_graph
def test_a_compiled_backward_pass_computes_no_gradient_that_nobody_wants(device: torch.device) -> None:
    layer = LINEAR["nf4"]().to(device)
    graphs: list[torch.fx.GraphModule] = []

    def backward(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=backward)
    for wanted in (False, True):
        torch.compiler.reset()
        x = inputs(layer, device, 2, 3).detach().requires_grad_(wanted)
        step(torch.compile(layer, fullgraph=True, backend=backend), x, layer)
    dequantized = [any("dequantize_4bit" in str(node.target) for node in graph.graph.nodes) for graph in graphs]
    assert dequantized == [False, True]


@over({name: make for name, make in LAYERS.items() if make is not parametrized})
def test_functional_call_takes_the_parameters_it_is_given(make: Make, device: torch.device) -> None:
    """With their statistics, where those are the parameter's; a parametrization has them itself."""
    layer, other = make().to(device), make().to(device)
    x = inputs(layer, device, 2, 3)
    expected = other(x)
    parameters = dict(other.named_parameters())

    def call(x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,))

    assert not torch.equal(layer(x), expected)
    assert torch.equal(call(x), expected)
    compiled = torch.compile(call, fullgraph=ONE_GRAPH, backend="aot_eager")
    assert torch.equal(compiled(x), expected)


@over(QUANTIZED)
def test_functional_call_refuses_codes_without_statistics(make: Make, device: torch.device) -> None:
    layer = make().to(device)
    x, codes = inputs(layer, device, 2, 3), {"weight": layer.weight.detach()}
    expected = layer(x)
    with pytest.raises(RuntimeError, match="the weight is a Tensor without statistics"):
        functional_call(layer, codes, (x,))
    assert torch.equal(layer(x), expected)


TRAINED = {name: make for name, make in LAYERS.items() if any(p.requires_grad for p in make().parameters())}


def gradients(layer: torch.nn.Module, x: Tensor) -> tuple[Callable[[Any], Any], dict[str, Tensor], list[Tensor]]:
    """A function that differentiates by parameters, some for it, and what it should return."""
    parameters = {name: p.detach() for name, p in layer.named_parameters() if p.requires_grad}
    gradient = torch.func.grad(lambda p: functional_call(layer, p, (x,)).square().sum())
    return gradient, parameters, step(layer, x)[-len(parameters) :]


@over(TRAINED)
def test_grad_of_parameters(make: Make, device: torch.device) -> None:
    layer = make().to(device)
    gradient, parameters, expected = gradients(layer, inputs(layer, device, 2, 3))
    assert_close([g.detach() for g in gradient(parameters).values()], expected)


@pytest.mark.skipif(RELEASE < (2, 11), reason="torch < 2.11 traces no autograd.Function in a torch.func.grad")
@over(TRAINED)
def test_compiled_grad_of_parameters(make: Make, device: torch.device) -> None:
    layer = make().to(device)
    gradient, parameters, expected = gradients(layer, inputs(layer, device, 2, 3))
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    assert_close([g.detach() for g in compiled(parameters).values()], expected)


# -- autograd ----------------------------------------------------------------------------------------------------------


def under_autocast(module: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Forward under autocast, backward, as it should be, outside."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device.type, BF16):
            return module(x)

    return forward


@over(LAYERS)
def test_autocast_beside_a_layer_that_is_cast(make: Make, device: torch.device) -> None:
    layer = make()
    beside = torch.nn.Linear(layer.embedding_dim if isinstance(layer, torch.nn.Embedding) else IN, IN)
    order = [layer, beside] if isinstance(layer, torch.nn.Embedding) else [beside, layer]
    model = torch.nn.Sequential(*order).to(device)
    x = inputs(layer, device, 2, 3)
    forward = under_autocast(model, device)
    found, exact = step(forward, x, model), step(model, x)
    assert found[0].dtype == BF16
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0, atol=0.1 * float(b.abs().max()))
    compiled = torch.compile(forward, fullgraph=ONE_GRAPH, backend="aot_eager")
    assert_close(step(compiled, x, model), found)


@pytest.mark.parametrize("name", [name for name in LINEAR if name.startswith(("nf4", "fp4", "int8"))])
def test_float32_is_computed_as_such_under_autocast(name: str, device: torch.device) -> None:
    layer = LINEAR[name]().to(device)
    x = inputs(layer, device, 2, 3)
    expected = step(layer, x)
    compiled = torch.compile(layer, fullgraph=ONE_GRAPH, backend="aot_eager")
    for module in (layer, compiled):
        assert_close(step(under_autocast(module, device), x, layer), expected)


@pytest.mark.parametrize(
    ("make", "reentrant"),
    [(make, False) for make in LAYERS.values()] + [(make, True) for make in LINEAR.values()],
    ids=[*LAYERS, *(f"{name}, reentrant" for name in LINEAR)],
)
def test_checkpointing(make: Make, reentrant: bool, device: torch.device) -> None:
    layer = make().to(device)
    x = inputs(layer, device, 2, 3)
    expected = step(layer, x)
    y = checkpoint(layer, x, use_reentrant=reentrant)
    if y.requires_grad:
        y.float().square().sum().backward()
    leaves = [t for t in (x, *layer.parameters()) if t.requires_grad]
    assert_close([y.detach(), *(t.grad for t in leaves)], expected)


@over({name: make for name, make in LINEAR.items() if name not in ("outlier aware", "parametrized")})
def test_second_derivatives(make: Make, device: torch.device) -> None:
    """Those of a linear layer with the values of the weight: rounding counts as the identity."""
    layer, plain = make().to(device), torch.nn.Linear(IN, OUT).to(device)
    x = inputs(layer, device, 2, 3)
    with torch.no_grad():
        bias = layer(x.new_zeros(1, IN))[0]
        trained = layer.weight.requires_grad
        plain.weight.copy_(layer.weight if trained else (layer(torch.eye(IN, device=device)) - bias).t())
        plain.bias.copy_(bias)
    second = []
    for module in (layer, plain):
        leaves = [x, module.weight] if trained else [x]
        (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(gradient.square().sum(), leaves))
    for found, expected in zip(*second, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 0.15


@over({name: LINEAR[name] for name in ("int8 of a weight", "fp8 mixed", "fp8 global", "switchback")})
def test_a_frozen_weight_keeps_no_activations(make: Make, device: torch.device) -> None:
    layer = make().to(device)
    layer.weight.requires_grad_(False)
    x = inputs(layer, device, 2, 3)
    saved: list[torch.Size] = []
    with saved_tensors_hooks(lambda tensor: (saved.append(tensor.shape), tensor)[1], lambda tensor: tensor):
        layer(x)
    assert x.shape not in saved and layer.weight.shape in saved


@over(LAYERS)
def test_saved_tensor_hooks(make: Make, device: torch.device) -> None:
    layer = make().to(device)
    x = inputs(layer, device, 2, 3)
    expected = step(layer, x)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor.detach().cpu().clone()

    with saved_tensors_hooks(pack, lambda tensor: tensor.to(device)):
        assert_close(step(layer, x), expected)
    if isinstance(layer, (nn.Linear4bit, nn.Linear8bitLt)):
        assert layer.weight.data_ptr() in saved
