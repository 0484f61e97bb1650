"""The linear layers and their parameters: quantizing, moving, copying, computing, differentiating."""

from __future__ import annotations

import copy
import functools
import gc
import io
import math
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import bnb_core
from bnb_core import functional as F
from bnb_core import nn

IN, OUT = 128, 48
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

Make = Callable[..., torch.nn.Linear]
FOUR_BIT: dict[str, Make] = {
    "nf4": functools.partial(nn.LinearNF4, compress_statistics=False),
    "fp4 nested": nn.LinearFP4,
    "nf4 nested in bf16": functools.partial(nn.LinearNF4, quant_storage=torch.bfloat16),
    "fp4 in fp32": functools.partial(nn.LinearFP4, compress_statistics=False, quant_storage=torch.float32),
}
INT8: dict[str, Make] = {
    "int8": functools.partial(nn.Linear8bitLt, has_fp16_weights=False),
    "int8 threshold": functools.partial(nn.Linear8bitLt, has_fp16_weights=False, threshold=3.0),
}
KEPT: dict[str, Make] = {
    "int8 of a weight": nn.Linear8bitLt,
    "int8 of a weight, threshold": functools.partial(nn.Linear8bitLt, threshold=3.0),
}
QUANTIZED = FOUR_BIT | INT8
LAYERS = QUANTIZED | KEPT


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def over(layers: dict[str, Make]) -> Any:
    return pytest.mark.parametrize("make", layers.values(), ids=layers.keys())


def activations(device: torch.device, *lead: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values with a column of outliers."""
    x = torch.randn(*lead, IN)
    x[..., 7] *= 8
    return x.to(device, dtype)


def dequantized(layer: torch.nn.Linear) -> Tensor:
    weight = layer.weight
    if isinstance(weight, nn.Params4bit):
        return F.dequantize_4bit(weight.data, weight.quant_state).float()
    return weight.detach() if weight.SCB is None else F.int8_vectorwise_dequant(weight.data, weight.SCB)


def bits(layer: torch.nn.Module) -> dict[str, Tensor]:
    """Everything in a layer's state dict but the bias, as bytes."""
    tensors = layer.state_dict().items()
    return {k: t.clone().cpu().reshape(-1).view(torch.uint8) for k, t in tensors if not k.endswith("bias")}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).abs().max() / expected.abs().max())


# -- quantizing --------------------------------------------------------------------------------------------------------


@over(QUANTIZED)
def test_the_first_move_quantizes_in_place(make: Make, device: torch.device) -> None:
    layer = make(IN, OUT)
    weight = layer.weight
    assert not weight.quantized
    assert weight.shape == (OUT, IN)
    x = activations(device, 2)
    with pytest.raises(RuntimeError, match=r"not quantized yet: move the layer to its device once"):
        layer(x)
    assert layer.to(device) is layer
    assert layer.weight is weight
    assert weight.quantized
    assert weight.device == device
    assert not weight.requires_grad
    before = bits(layer)
    layer.to(device)
    assert layer.weight is weight
    assert same_bits(bits(layer), before)


@over(QUANTIZED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantizes_the_dtype_it_is_moved_with(make: Make, device: torch.device, dtype: torch.dtype) -> None:
    weights = torch.nn.Linear(IN, OUT).state_dict()
    results = []
    for move in (lambda m: m.to(dtype).to(device), lambda m: m.to(device, dtype)):
        layer = make(IN, OUT)
        layer.load_state_dict(weights)
        results.append(bits(move(layer)))
    assert same_bits(*results)
    if isinstance(layer, nn.Linear4bit):
        assert layer.quant_state.dtype == dtype


def test_cpu_is_a_device() -> None:
    for make in QUANTIZED.values():
        assert make(IN, OUT).cpu().weight.quantized
        weight = make(IN, OUT).weight
        assert weight.cpu() is weight
        assert weight.quantized


@over(LAYERS)
def test_meta_is_not(make: Make, device: torch.device) -> None:
    layer = make(IN, OUT).to("meta")
    assert layer.weight.is_meta
    assert not layer.weight.quantized
    assert type(layer.weight) is type(make(1, 1).weight)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        layer.to(device)
    layer.to_empty(device=device)
    assert layer.weight.device == device
    assert not layer.weight.quantized
    assert type(layer.weight) is type(make(1, 1).weight)


@over(QUANTIZED)
def test_a_weight_that_is_not_finite_warns_once(make: Make, device: torch.device) -> None:
    layer = make(IN, 600)
    layer.weight[5, 5] = torch.inf
    with pytest.warns(UserWarning, match="the weight holds NaN or Inf") as caught:
        layer.to(device)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = layer(activations(device, 3))
        layer.to(device)
    assert y[:, 5].isnan().all()
    assert y[:, 300:].isfinite().all()


# -- bits stay ---------------------------------------------------------------------------------------------------------


@over(QUANTIZED)
def test_casts_never_change_codes_and_scales(make: Make, device: torch.device) -> None:
    layer = make(IN, OUT).to(device)
    weight, before = layer.weight, bits(layer)
    casts = [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double, torch.nn.Module.float]
    casts += [lambda m: m.to(torch.float16), lambda m: m.type(torch.float32), lambda m: m.to(device, torch.bfloat16)]
    casts += [lambda m: m._apply(lambda t: t.to(torch.float16)), lambda m: m.to(torch.empty(0, device=device))]
    for cast in casts:
        cast(layer)
        assert layer.weight is weight
        assert same_bits(bits(layer), before)
    own = [weight.half, weight.bfloat16, weight.float, weight.double]
    own += [functools.partial(weight.to, d) for d in (torch.float16, torch.float64, device, weight.dtype)]
    own += [functools.partial(weight.type, torch.float16), functools.partial(weight.type_as, torch.ones(1).to(device))]
    for cast in own:
        assert cast() is weight
    assert weight.type().startswith("torch.")
    assert layer.bias.dtype == torch.float32


@over(LAYERS)
def test_output_is_the_same_after_every_kind_of_copy(make: Make, device: torch.device, tmp_path: Any) -> None:
    layer = make(IN, OUT).to(device)
    x = activations(device, 5)
    expected, before = layer(x), bits(layer)

    def saved(obj: object, weights_only: bool) -> Any:
        torch.save(obj, tmp_path / "file.pt")
        return torch.load(tmp_path / "file.pt", weights_only=weights_only)

    def with_weight(weight: Tensor) -> torch.nn.Linear:
        other = make(IN, OUT).to(device)
        other.weight, other.bias = weight, layer.bias
        return other

    loaded = make(IN, OUT)
    loaded.load_state_dict(saved(layer.state_dict(), True))
    copies = [
        layer.to(device),
        copy.copy(layer),
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        saved(layer, False),
        loaded.to(device),
        with_weight(saved(layer.weight, True)),
        with_weight(copy.copy(layer.weight)),
        with_weight(copy.deepcopy(layer.weight)),
        with_weight(pickle.loads(pickle.dumps(layer.weight))),
        layer,
    ]
    for other in copies:
        assert type(other.weight) is type(layer.weight)
        assert other.weight.requires_grad == layer.weight.requires_grad
        assert torch.equal(other(x), expected)
        assert same_bits(bits(other), before)
    assert copies[2].weight.data_ptr() != layer.weight.data_ptr()


@over(QUANTIZED)
def test_a_move_gives_a_new_parameter_and_leaves_the_old_one(make: Make, device: torch.device) -> None:
    weight = make(IN, OUT).to(device).weight
    moved = weight.to("meta")
    assert moved is not weight
    assert type(moved) is type(weight)
    assert moved.is_meta
    assert moved.quantized
    assert weight.device == device
    scales = [p.absmax if isinstance(p, nn.Params4bit) else p.SCB for p in (moved, weight)]
    assert scales[0].is_meta
    assert scales[1].device == device


@over(QUANTIZED)
def test_a_weight_that_is_replaced_is_freed(make: Make, device: torch.device) -> None:
    layer = make(IN, OUT).to(device)
    weight = weakref.ref(layer.weight)
    layer.weight = torch.nn.Parameter(layer.weight.data, requires_grad=False)
    gc.collect()
    assert weight() is None
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert same_bits(bits(other), bits(layer))


@over(LAYERS)
def test_tied_weights_stay_tied(make: Make, device: torch.device) -> None:
    a, b = make(IN, OUT), make(IN, OUT)
    b.weight = a.weight
    model = torch.nn.Sequential(a, b)
    for move in (lambda: model.to(device), model.half, model.float, lambda: copy.deepcopy(model)):
        moved = move()
        assert moved[0].weight is moved[1].weight
    model.load_state_dict(model.state_dict())
    assert a.weight is b.weight


@over(LAYERS)
def test_shared_memory_reaches_every_part(make: Make) -> None:
    layer = make(IN, OUT).to("cpu").share_memory()
    assert layer.weight.is_shared()
    if isinstance(layer, nn.Linear4bit):
        state = layer.quant_state
        parts = [state.absmax, state.code] + ([state.offset, state.state2.absmax] if state.nested else [])
        assert all(part.is_shared() for part in parts)
    elif layer.weight.SCB is not None:
        assert layer.weight.SCB.is_shared()


@over(LAYERS)
def test_a_forward_pass_changes_nothing(make: Make, device: torch.device) -> None:
    layer = make(IN, OUT).to(device)
    before, attributes, bias = bits(layer), dict(layer.__dict__), layer.bias.clone()
    for dtype in DTYPES:
        layer(activations(device, 3, dtype=dtype).requires_grad_()).sum().backward()
    assert same_bits(bits(layer), before)
    assert layer.__dict__ == attributes
    assert layer.bias.dtype == torch.float32
    assert torch.equal(layer.bias, bias)


# -- parameters by themselves ------------------------------------------------------------------------------------------


def test_attributes_go_back_into_the_constructor(device: torch.device) -> None:
    value = torch.randn(OUT, IN)
    fresh = nn.Params4bit(
        torch.empty(OUT, IN, device="meta"), blocksize=128, quant_type="nf4", quant_storage=torch.bfloat16
    )
    fresh.tag = "kept"
    quantized = nn.Params4bit(value, requires_grad=False, **fresh.__dict__).to(device)
    assert quantized.quant_state == F.quantize_4bit(value.to(device), None, None, 128, True, "nf4")[1]
    assert quantized.dtype == torch.bfloat16
    assert quantized.tag == "kept"
    again = nn.Params4bit(quantized.data, requires_grad=False, **quantized.__dict__)
    assert again.quant_state == quantized.quant_state
    assert again.to(device) is again
    # merging an adapter: another value in the place of a quantized one, quantized anew by the same recipe
    merged = nn.Params4bit(value + 1, **quantized.__dict__ | {"bnb_quantized": False}).to(device)
    assert merged.quant_state == F.quantize_4bit(value.to(device) + 1, None, None, 128, True, "nf4")[1]
    assert merged.dtype == torch.bfloat16


def test_int8_attributes_go_back_into_the_constructor(device: torch.device) -> None:
    value = torch.randn(OUT, IN)
    quantized = nn.Int8Params(value, requires_grad=False, **nn.Int8Params(value).__dict__).to(device)
    codes, scales = F.int8_weight_quant(value.to(device))
    assert torch.equal(quantized.CB, codes)
    assert torch.equal(quantized.SCB, scales)
    again = nn.Int8Params(quantized.data, requires_grad=False, **quantized.__dict__)
    assert again.SCB is quantized.SCB
    merged = nn.Int8Params(value + 1, requires_grad=False, **quantized.__dict__)
    assert merged.SCB is None
    assert torch.equal(merged.to(device).CB, F.int8_weight_quant(value.to(device) + 1)[0])
    late = nn.Int8Params(CB=codes).to(device)  # scales set later, as loaders do
    assert late.SCB is None
    late.SCB = scales
    assert torch.equal(copy.deepcopy(late).SCB, scales)
    late.CB = codes.clone()
    assert late.quantized


def test_constructor_refuses_what_does_not_fit(device: torch.device) -> None:
    packed, state = F.quantize_nf4(torch.randn(OUT, IN, device=device))
    with pytest.raises(ValueError, match=r"data has 10 elements of torch.uint8, but quant_state .* needs 3072"):
        nn.Params4bit(packed[:10], quant_state=state)
    with pytest.raises(ValueError, match="bnb_quantized=True needs the quant_state"):
        nn.Params4bit(packed, bnb_quantized=True)
    with pytest.raises(ValueError, match="not that of 4-bit codes"):
        nn.Params4bit(packed, quant_state=F.quantize_blockwise(torch.randn(64, device=device))[1])
    with pytest.raises(RuntimeError, match="quant_type is 'int4', expected 'nf4' or 'fp4'"):
        nn.Linear4bit(IN, OUT, quant_type="int4").to(device)
    with pytest.raises(RuntimeError, match="A is float64"):
        nn.LinearNF4(IN, OUT).double().to(device)


@pytest.mark.parametrize("nested", [False, True])
def test_parameter_shows_its_state(nested: bool, device: torch.device) -> None:
    weight = nn.LinearNF4(IN, OUT, compress_statistics=nested).to(device).weight
    state = weight.quant_state
    assert weight.absmax is state.absmax
    assert weight.code is weight.quant_map is state.code
    assert weight.state2 is state.state2
    if nested:
        assert weight.offset is weight.nested_offset is state.offset
        assert weight.nested_absmax is state.state2.absmax
        assert weight.nested_quant_map is state.state2.code
        assert (weight.nested_blocksize, weight.nested_dtype) == (256, torch.float32)
    with pytest.raises(AttributeError):
        _ = nn.Params4bit(torch.ones(2, 2)).absmax


def test_unquantized_parameters_convert_like_others() -> None:
    weight = nn.Params4bit(torch.randn(OUT, IN))
    half = weight.half()
    assert isinstance(half, nn.Params4bit)
    assert half.dtype == torch.float16
    assert weight.dtype == torch.float32
    assert weight.float() is weight
    kept = nn.Int8Params(torch.randn(OUT, IN), has_fp16_weights=True)
    kept.half().sum().backward()  # in the graph, as any parameter
    assert kept.grad is not None
    layer = nn.Linear8bitLt(IN, OUT)
    layer(torch.randn(2, IN)).sum().backward()
    weight = layer.weight
    layer.half()
    assert layer.weight is weight
    assert weight.grad.dtype == weight.dtype == torch.float16


# -- values and gradients ----------------------------------------------------------------------------------------------


@over(LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients(make: Make, dtype: torch.dtype, bias: bool, device: torch.device) -> None:
    layer = make(IN, OUT, bias=bias).to(device)
    x = activations(device, 2, 5, dtype=dtype).requires_grad_()
    y = layer(x)
    assert (y.dtype, y.shape) == (dtype, (2, 5, OUT))
    gradient = torch.randn(2, 5, OUT).to(device, dtype)
    y.backward(gradient)

    W = dequantized(layer).double().requires_grad_()
    b = layer.bias.detach().double().requires_grad_() if bias else None
    x2 = x.detach().double().requires_grad_()
    expected = torch.nn.functional.linear(x2, W, b)
    expected.backward(gradient.double())
    rounding = TOLERANCE[dtype] + (0 if isinstance(layer, nn.Linear4bit) else 5e-2)
    assert relative_error(y, expected) < rounding
    assert x.grad.dtype == dtype
    assert relative_error(x.grad, x2.grad) < TOLERANCE[dtype]
    if bias:
        assert layer.bias.grad.dtype == torch.float32
        assert relative_error(layer.bias.grad, b.grad) < 1e-6
    if layer.weight.requires_grad:
        assert relative_error(layer.weight.grad, W.grad) < TOLERANCE[dtype]
    assert torch.equal(y, layer(x.detach()))


@pytest.mark.parametrize("make", [nn.LinearNF4, INT8["int8"]])
def test_sizes_of_input(make: Make, device: torch.device) -> None:
    layer = make(IN, OUT).to(device)
    for lead in ((), (0,), (1,), (2, 0), (2, 3, 4)):
        x = activations(device, *lead).requires_grad_()
        y = layer(x)
        assert y.shape == (*lead, OUT)
        y.sum().backward()
        assert x.grad.shape == x.shape
    wide = activations(device, 4, 6)
    assert torch.equal(layer(wide.transpose(0, 1)), layer(wide.transpose(0, 1).contiguous()))
    with pytest.raises(RuntimeError, match=r"A has shape \(3, 127\), expected 128"):
        layer(torch.randn(3, IN - 1, device=device))
    with pytest.raises(RuntimeError, match="A is float64, expected float32, float16 or bfloat16"):
        layer(torch.randn(3, IN, device=device).double())


@pytest.mark.parametrize(("features", "outputs"), [(33, 7), (1, 1), (100, 3), (65, 64)])
def test_odd_shapes(features: int, outputs: int, device: torch.device) -> None:
    for make in QUANTIZED.values():
        layer = make(features, outputs).to(device)
        x = torch.randn(3, features, device=device)
        assert relative_error(layer(x) - layer.bias, x @ dequantized(layer).t()) < 3e-2


@pytest.mark.filterwarnings("ignore:Linear4bit got an input in float32")
def test_compute_dtype(device: torch.device) -> None:
    layer = nn.LinearNF4(IN, OUT, compute_dtype=torch.bfloat16).to(device)
    x = activations(device, 3).requires_grad_()
    y = layer(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, layer(x.bfloat16()).float())
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_a_second_derivative(device: torch.device) -> None:
    layer = nn.LinearNF4(IN, OUT).to(device)
    x = activations(device, 2).requires_grad_()
    (first,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    W = dequantized(layer)
    assert relative_error(second, torch.ones(2, IN, device=device) @ (2 * W.t() @ W)) < 1e-4


# -- transforms --------------------------------------------------------------------------------------------------------


@over(LAYERS)
def test_a_tensor_that_left_its_transform(make: Make, device: torch.device) -> None:
    """What torch.func wrapped around it is dead by then, and its gradient is that of the tensor within."""
    layer = make(IN, OUT).to(device)
    left: list[Tensor] = []
    x = activations(device, 3).requires_grad_()
    torch.func.grad(lambda t: (left.append(t), t.sum())[1])(x)
    (expected,) = torch.autograd.grad(layer(x).sum(), x)
    (found,) = torch.autograd.grad(layer(left[0]).sum(), x)
    assert torch.equal(found, expected)


def test_vmap_over_other_operands(device: torch.device) -> None:
    layer = nn.LinearNF4(IN, OUT).to(device)
    x, biases = activations(device, 4), torch.randn(3, OUT, device=device)

    def product(bias: Tensor) -> Tensor:
        return bnb_core.matmul_4bit(x, layer.weight, layer.quant_state, bias=bias)

    expected = torch.stack([product(bias) for bias in biases])
    assert torch.equal(torch.func.vmap(product)(biases), expected)


def test_functions_compile_in_one_graph(device: torch.device) -> None:
    torch.compiler.reset()

    def both_ways(A: Tensor) -> tuple[Tensor, Tensor]:
        four = F.dequantize_4bit(*F.quantize_4bit(A, quant_type="nf4"))
        return four, F.dequantize_blockwise(*F.quantize_blockwise(A, code, blocksize=64))

    code = F.create_dynamic_map().to(device)
    A = activations(device, 5)
    found = torch.compile(both_ways, fullgraph=True, backend="aot_eager")(A)
    for eager, compiled in zip(both_ways(A), found, strict=True):
        assert torch.equal(eager, compiled)


# -- LLM.int8() ------------------------------------------------------------------------------------------------------


def decomposed(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    """The layer's mathematics in float64: codes of the rows without outliers, and the outlier columns as they are."""
    weight, scales = layer.weight.detach(), layer.weight.SCB
    if scales is None:
        weight, scales, _ = F.int8_vectorwise_quant(weight)
    W = weight.double() * scales.double()[:, None] / 127
    codes, absmax, columns = F.int8_vectorwise_quant(x, layer.threshold)
    rounded = codes.double() * absmax.double()[:, None] / 127
    return rounded @ W.t() + x.double()[:, columns] @ W[:, columns].t() + layer.bias.double()


# The constant that stands for 1 / 127**2 is 1.8e-5 off; the product of the codes has its error.
CONSTANT = 2e-5


@pytest.mark.parametrize("kept", [False, True], ids=["int8", "int8 of a weight"])
@pytest.mark.parametrize(
    ("dtype", "largest", "rounding"),
    [(torch.float32, 3e30, 1e-6), (torch.bfloat16, 3e30, 2.0**-8), (torch.float16, 3e4, 2.0**-10)],
)
def test_outliers_are_computed_in_the_dtype_of_the_activations(
    dtype: torch.dtype, largest: float, rounding: float, kept: bool, device: torch.device
) -> None:
    """Far outside of fp16 where dtype is another, with all their digits, and rounded once."""
    layer = nn.Linear8bitLt(IN, OUT, has_fp16_weights=kept, threshold=6.0).to(device)
    x = (torch.rand(9, IN, dtype=torch.float64) - 0.5).to(device, dtype)
    for scale in (math.pi * 10, largest / math.pi):
        x[:, [3, 70]] = (torch.rand(9, 2, dtype=torch.float64).to(device) * 0.5 * scale + scale / 2).to(dtype)
        y, expected = layer(x), decomposed(layer, x)
        assert y.dtype == dtype
        assert y.isfinite().all()
        error = (y.double() - expected).abs()
        assert (error <= rounding * expected.abs() + 2e-6 * float(expected.abs().max()) + CONSTANT).all()
        # Where the outliers are zero, the rest must not have been touched by them.
        x[1:, [3, 70]] = 0
        y, expected = layer(x)[1:], decomposed(layer, x)[1:]
        assert ((y.double() - expected).abs() <= rounding * expected.abs() + CONSTANT).all()


@over(INT8 | KEPT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_accumulate(make: Make, dtype: torch.dtype, device: torch.device) -> None:
    layer = make(IN, OUT).to(device)
    x = activations(device, 6, dtype=dtype).requires_grad_()
    leaves = [t for t in (x, *layer.parameters()) if t.requires_grad]
    weights = [torch.randn(6, OUT).to(device, dtype) for _ in range(2)]
    singly = [torch.autograd.grad((layer(x) * w).sum(), leaves) for w in weights]
    for w in weights:
        (layer(x) * w).sum().backward()
    for leaf, first, second in zip(leaves, *singly, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        assert torch.equal(leaf.grad, first + second)
    twice = layer(x)
    (twice * weights[0]).sum().backward(retain_graph=True)
    before = [leaf.grad.clone() for leaf in leaves]
    (twice * weights[0]).sum().backward()
    for leaf, start, once in zip(leaves, before, singly[0], strict=True):
        assert torch.equal(leaf.grad, start + once)


def test_training_a_weight_through_outliers(device: torch.device) -> None:
    layer = nn.Linear8bitLt(IN, 8, threshold=3.0).to(device)
    x = activations(device, 64)
    target = x @ torch.randn(IN, 8, device=device) / IN**0.5
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("kept", [False, True], ids=["int8", "int8 of a weight"])
def test_matmul_compiles_for_all_numbers_of_rows(kept: bool, device: torch.device) -> None:
    torch.compiler.reset()
    B = torch.randn(OUT, IN, device=device)
    state = bnb_core.MatmulLtState(threshold=3.0, has_fp16_weights=kept)
    bnb_core.matmul(activations(device, 1), B, state=state)  # quantizes where it is to
    graphs: list[torch.fx.GraphModule] = []

    def product(A: Tensor) -> Tensor:
        return bnb_core.matmul(A, B, state=state)

    def counting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(product, fullgraph=True, dynamic=True, backend=counting)
    for rows in (2, 5, 9):
        A = activations(device, rows)
        assert torch.equal(compiled(A), product(A))
    assert len(graphs) == 1


# -- matmul and matmul_4bit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_matmul_4bit(nested: bool, device: torch.device) -> None:
    packed, state = F.quantize_nf4(torch.randn(OUT, IN, device=device), compress_statistics=nested)
    A, bias = activations(device, 3), torch.randn(OUT, device=device)
    expected = bnb_core.matmul_4bit(A, packed, state, bias=bias)
    assert relative_error(expected, A @ F.dequantize_4bit(packed, state).t() + bias) < 1e-6
    assert torch.equal(bnb_core.matmul_4bit(A, packed.t(), state, bias=bias), expected)
    out = torch.empty_like(expected)
    assert bnb_core.matmul_4bit(A, packed, state, out, bias) is out
    assert torch.equal(out, expected)
    with pytest.raises(ValueError, match="differentiated takes no out"):
        bnb_core.matmul_4bit(A.requires_grad_(), packed, state, out)
    with torch.no_grad():
        assert torch.equal(bnb_core.matmul_4bit(A, packed, state, out, bias), expected)


def test_matmul(device: torch.device) -> None:
    A, B, bias = activations(device, 4), torch.randn(OUT, IN, device=device), torch.randn(OUT, device=device)
    exact = A @ B.t() + bias
    plain = bnb_core.matmul(A, B, bias=bias)
    with_outliers = bnb_core.matmul(A, B, threshold=3.0, bias=bias)
    assert relative_error(with_outliers, exact) < relative_error(plain, exact) < 2e-2

    state = bnb_core.MatmulLtState(has_fp16_weights=False)
    assert torch.equal(bnb_core.matmul(A, B, state=state, bias=bias), plain)
    assert torch.equal(state.CB, F.int8_vectorwise_quant(B)[0])
    assert torch.equal(bnb_core.matmul(A, B * 2, state=state, bias=bias), plain)  # quantized once
    assert torch.equal(bnb_core.matmul(A, B, state=state, threshold=3.0, bias=bias), with_outliers)
    state.threshold = 3.0
    assert torch.equal(bnb_core.matmul(A, B, state=state, bias=bias), with_outliers)
    codes = bnb_core.MatmulLtState(SCB=state.SCB, has_fp16_weights=False)
    assert torch.equal(bnb_core.matmul(A, state.CB, state=codes, bias=bias), plain)
    state.reset_grads()
    assert state.CB is state.SCB is None
    with pytest.raises(ValueError, match="no SCB"):
        bnb_core.matmul(A, codes.CB, state=state)

    out = torch.empty_like(plain)
    assert bnb_core.matmul(A, B, out, bias=bias) is out
    assert torch.equal(out, plain)
    with pytest.raises(ValueError, match="out is"):
        bnb_core.matmul(A, B, out[:2])
    with pytest.raises(ValueError, match="differentiated takes no out"):
        bnb_core.matmul(A, B.requires_grad_(), out)
    bnb_core.matmul(A, B).sum().backward()
    assert B.grad is not None


def test_layer_shows_its_matmul_state(device: torch.device) -> None:
    layer = INT8["int8 threshold"](IN, OUT).to(device)
    x = activations(device, 3)
    state = layer.state
    assert state.SCB is layer.weight.SCB
    assert torch.equal(bnb_core.matmul(x, layer.weight, state=state, bias=layer.bias), layer(x))
    assert nn.Linear8bitLt(IN, OUT, index=3).index == 3


def test_pickled_parameters_need_no_code_but_ours(device: torch.device) -> None:
    for make in QUANTIZED.values():
        file = io.BytesIO()
        torch.save({"weight": make(IN, OUT).to(device).weight}, file)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(file.getvalue()))
        assert names == []


# -- inference mode, meta, and what others assign ----------------------------------------------------------------------


@over(QUANTIZED)
@pytest.mark.parametrize("made_there", [False, True], ids=["made outside", "made inside"])
def test_quantizing_in_inference_mode_leaves_a_layer_that_trains(
    make: Make, made_there: bool, device: torch.device
) -> None:
    outside = None if made_there else make(IN, OUT, bias=False)
    with torch.inference_mode():
        layer = (outside or make(IN, OUT, bias=False)).to(device, torch.bfloat16)
    x = activations(device, 3).requires_grad_()
    (layer(x) * 2).sum().backward()
    assert x.grad is not None
    expected = 2 * dequantized(layer).sum(dim=0).expand_as(x)
    assert relative_error(x.grad, expected) < TOLERANCE[torch.bfloat16]
    parts = [layer.weight, *layer.weight.companions("weight").values()]
    assert not any(part.is_inference() for part in parts)


@over(QUANTIZED)
def test_state_dict_on_meta(make: Make, device: torch.device) -> None:
    layer = make(IN, OUT).to(device)
    keys = layer.state_dict().keys()
    nested = isinstance(layer.weight, nn.Params4bit) and layer.weight.quant_state.nested
    layer.to("meta")
    if nested:
        with pytest.raises(RuntimeError, match="the nested statistics are on meta, which holds no values"):
            layer.state_dict()
    else:
        assert layer.state_dict().keys() == keys


@over(QUANTIZED)
def test_a_plain_parameter_in_the_weights_place(make: Make, device: torch.device) -> None:
    layer = make(IN, OUT)
    name = type(layer.weight).__name__
    layer.weight = torch.nn.Parameter(torch.randn(OUT, IN))
    layer.to(device)
    with pytest.raises(RuntimeError, match=f"is a Parameter without statistics.*assign a {name}"):
        layer(activations(device, 2))
    if isinstance(layer, nn.Linear8bitLt):
        assert layer.state.CB is None


def test_int8_parameter_of_one_dimension(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"expected \[N, K\]"):
        nn.Int8Params(torch.randn(8)).to(device)


def test_matmul_leaves_a_state_alone_that_it_refuses(device: torch.device) -> None:
    x = activations(device, 2)
    state = bnb_core.MatmulLtState(has_fp16_weights=False)
    with pytest.raises(ValueError, match="has no SCB"):
        bnb_core.matmul(x, torch.ones(OUT, IN, dtype=torch.int8, device=device), state=state)
    assert state.CB is None
    bnb_core.matmul(x, torch.randn(OUT, IN, device=device), state=state)
    assert state.CB is not None
    assert state.SCB is not None


def test_the_layers_of_one_type_share_their_constructor() -> None:
    for cls, quant_type in ((nn.LinearNF4, "nf4"), (nn.LinearFP4, "fp4")):
        layer = cls(IN, OUT, False, torch.float32, False, torch.int8, "meta")
        assert isinstance(layer, nn.Linear4bit)
        assert (layer.bias, layer.compute_dtype) == (None, torch.float32)
        weight = layer.weight
        assert (weight.compress_statistics, weight.quant_type, weight.quant_storage) == (False, quant_type, torch.int8)
        assert weight.is_meta
    assert "__init__" not in vars(nn.LinearNF4)


# -- warnings --------------------------------------------------------------------------------------------------------


def test_rounding_of_a_float32_input_is_said_once_in_training_and_once_in_inference(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.linear4bit, "_told", set())
    layers = [nn.LinearNF4(IN, OUT, compute_dtype=torch.bfloat16).to(device) for _ in range(2)]
    exact = nn.LinearNF4(IN, OUT, compute_dtype=torch.float32).to(device)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            for layer in layers:
                layer.train()(activations(device, 2))
                layer.eval()(activations(device, 2))
                layer(activations(device, 2, dtype=torch.float16))
        exact(activations(device, 2))
    assert [str(warning.message).partition(",")[0] for warning in said] == [
        "Linear4bit got an input in float32 in training",
        "Linear4bit got an input in float32 in inference",
    ]
    assert "rounds it to its compute_dtype bfloat16" in str(said[0].message)
    assert said[0].filename == __file__


def test_settings_written_to_a_state_reach_the_layer(device: torch.device) -> None:
    layer = nn.Linear8bitLt(IN, OUT, has_fp16_weights=False, threshold=3.0).to(device)
    x = activations(device, 4)
    with_outliers = layer(x)
    layer.state.threshold = 0.0
    assert layer.threshold == layer.state.threshold == 0.0
    assert not torch.equal(layer(x), with_outliers)
    other = nn.Linear8bitLt(IN, OUT, threshold=3.0)
    other.weight, other.bias, other.state = layer.weight, layer.bias, bnb_core.MatmulLtState(None, None, 3.0, False)
    assert torch.equal(other(x), with_outliers)
    # as peft after it has put another weight there
    layer.state.reset_grads()
    layer.init_8bit_state()
    assert layer.state.SCB is layer.weight.SCB is not None


def test_codes_and_scales_are_taken_away_into_a_state(device: torch.device) -> None:
    """As modules of others do with an Int8Params, once `CB` is there."""
    weight = nn.Int8Params(torch.randn(OUT, IN), requires_grad=False).to(device)
    x = activations(device, 2)
    state = bnb_core.MatmulLtState(weight.CB, weight.SCB, has_fp16_weights=False)
    want = bnb_core.matmul(x, weight, state=state)
    weight.CB = None
    weight.SCB = None
    assert weight.CB is None and weight.quantized
    assert torch.equal(bnb_core.matmul(x, weight, state=state), want)


def test_statistics_are_assigned_to_a_layer(device: torch.device) -> None:
    packed, state = F.quantize_nf4(torch.randn(OUT, IN, device=device))
    layer = nn.Linear4bit(IN, OUT, bias=False)
    layer.weight = nn.Params4bit(packed)
    layer.quant_state = None
    assert layer.quant_state is None
    layer.quant_state = state
    assert layer.weight.quant_state is layer.quant_state is state
    assert layer.weight.bnb_quantized and layer.weight.quant_type == "nf4"
    assert layer.quant_storage == torch.uint8
    assert torch.equal(layer.to(device).weight, packed)
    layer(activations(device, 2))
    with pytest.raises(ValueError, match=r"data has 3072 elements of .*, but quant_state of shape"):
        layer.quant_state = F.quantize_nf4(torch.randn(OUT, OUT, device=device))[1]
