"""Random arguments for every operator: each level of the CPU kernels agrees with the reference, on any threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from conftest import LEVEL
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

if find_spec("bnb_core.backends.cpu._native") is None:
    pytest.skip("bnb_core was installed without native kernels", allow_module_level=True)

from bnb_core.ops_registry import EXACT, OPS, Kernel, Op, differences, force, kernels_for
from bnb_core.ops_registry.cases import Maker, fresh
from bnb_core.ops_registry.cases.optimizer import optimizer_args
from bnb_core.ops_registry.codebooks import dynamic_map
from bnb_core.ops_registry.formats import (
    BLOCKSIZES,
    BLOCKWISE,
    FLOATS,
    FP32,
    GNORM_HISTORY,
    NESTED_BLOCKSIZE,
    OPTIMIZER_STATES,
    PER_TENSOR,
    QUANT_TYPES,
    STORAGES,
    StateFormat,
)

Args = tuple[Any, ...]
Draw = Callable[[Any], Any]

FEW = 25  # examples of an operator where there is little time
MANY = 1000

dtypes = st.sampled_from(FLOATS)
quant_types = st.sampled_from(QUANT_TYPES)
blocksizes = st.sampled_from(BLOCKSIZES)
makers = st.integers(0, 2**32 - 1).map(lambda seed: Maker("cpu", "quick", seed))
# Beside small shapes some that are worth several threads.
shapes = st.one_of(
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
    st.integers(0, 600).map(lambda n: (n,)),
    st.integers(60_000, 140_000).map(lambda n: (n,)),
)
matrices = st.tuples(st.integers(0, 9), st.integers(0, 300))
positions = st.integers(0, 2**31 - 1)


@st.composite
def values(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Normal numbers of any magnitude, some of them zero, ties, infinite or no number."""
    make: Maker = draw(makers)
    scale = draw(st.sampled_from((1.0, 1.0, 1e-3, 1e3, 1e-6, 1e-38, 1e-42, 1e36)))
    tensor = make.normal(*shape, dtype=dtype, scale=scale)
    special = st.sampled_from((0.0, -0.0, scale, -scale, math.nan, math.inf, -math.inf))
    if tensor.numel():
        flat = tensor.view(-1)
        for position, value in draw(st.lists(st.tuples(positions, special), max_size=4)):
            # A number itself is refused by older torch where it is infinite in the dtype.
            flat[position % flat.numel()] = torch.tensor(value, dtype=dtype)
        if draw(st.booleans()):
            flat[: draw(positions) % flat.numel()] = 0
    return tensor


@st.composite
def codes(draw: Draw) -> Tensor:
    """A codebook: a dynamic map, or up to 256 sorted values, some of them equal."""
    if draw(st.booleans()):
        return dynamic_map(signed=draw(st.booleans()))
    make, size = draw(makers), draw(st.integers(1, 256))
    found = make.normal(size)
    return (found * 4).round() / 4 if draw(st.booleans()) else found.sort().values


@st.composite
def scales(draw: Draw, count: int) -> Tensor:
    found = draw(makers).positive(count)
    if count and draw(st.booleans()):
        found[draw(positions) % count] = draw(st.sampled_from((0.0, math.nan, math.inf, 1e-40, 3e38)))
    return found


@st.composite
def quantize_blockwise(draw: Draw) -> Args:
    A = draw(values(draw(shapes), draw(dtypes)))
    return A, draw(codes()).sort().values, draw(st.one_of(blocksizes, st.integers(1, 5000)))


@st.composite
def dequantize_blockwise(draw: Draw) -> Args:
    A, blocksize = draw(makers).bytes(*draw(shapes)), draw(st.one_of(blocksizes, st.integers(1, 5000)))
    return A, draw(scales(-(-A.numel() // blocksize))), draw(codes()), blocksize, draw(dtypes)


@st.composite
def quantize_4bit(draw: Draw) -> Args:
    A = draw(values(draw(shapes), draw(dtypes)))
    return A, draw(blocksizes), draw(quant_types), draw(st.sampled_from(STORAGES))


@st.composite
def dequantize_4bit(draw: Draw) -> Args:
    shape, blocksize = draw(shapes), draw(blocksizes)
    packed = draw(makers).packed(shape, draw(st.sampled_from(STORAGES)))
    absmax = draw(scales(-(-math.prod(shape) // blocksize)))
    return packed, absmax, blocksize, draw(quant_types), shape, draw(dtypes)


@st.composite
def weights(draw: Draw, rows: int) -> tuple[Args, Args]:
    """A 4-bit weight of so many rows: (B, shapeB, absmax, blocksize, quant_type), and its nested statistics."""
    make, blocksize = draw(makers), draw(blocksizes)
    shape = rows, draw(st.one_of(st.integers(0, 200), st.sampled_from((256, 512, 1024))))
    blocks = -(-math.prod(shape) // blocksize)
    packed = make.packed(shape, draw(st.sampled_from(STORAGES)))
    if draw(st.booleans()):
        absmax, nested = make.positive(-(-blocks // NESTED_BLOCKSIZE)), (make.bytes(blocks), draw(codes()))
        return (packed, shape, absmax, blocksize, draw(quant_types)), (*nested, make.tensor(0.5))
    return (packed, shape, make.positive(blocks), blocksize, draw(quant_types)), (None, None, None)


# A result of few elements can cancel to nearly nothing, where no relative bound holds: products have at least 16.
wide = st.one_of(st.integers(16, 80), st.just(256))


@st.composite
def gemm_4bit(draw: Draw) -> Args:
    weight, nested = draw(weights(draw(wide)))
    dtype, make = draw(dtypes), draw(makers)
    A = make.normal(*draw(st.lists(st.integers(1, 20), max_size=2)), weight[1][1], dtype=dtype)
    bias = make.normal(weight[1][0], dtype=draw(dtypes)) if draw(st.booleans()) else None
    return (A, *weight, bias, *nested)


@st.composite
def grouped_gemm_4bit(draw: Draw) -> Args:
    make, blocksize, dtype = draw(makers), draw(blocksizes), draw(dtypes)
    shape = draw(st.integers(1, 4)), draw(st.sampled_from((16, 48))), blocksize // 16 * draw(st.integers(1, 3))
    blocks = math.prod(shape) // blocksize
    ends = sorted(draw(st.lists(st.integers(0, 20), min_size=shape[0], max_size=shape[0])))
    absmax, nested = make.positive(blocks), (None, None, None)
    if draw(st.booleans()):
        absmax, nested = (
            make.positive(-(-blocks // NESTED_BLOCKSIZE)),
            (make.bytes(blocks), draw(codes()), make.tensor(0.5)),
        )
    weight = (make.packed(shape, draw(st.sampled_from(STORAGES))), shape, absmax, blocksize, draw(quant_types))
    input_gradient = shape[2] >= 16 and draw(st.booleans())
    bias = make.normal(*shape[:2], dtype=draw(dtypes)) if not input_gradient and draw(st.booleans()) else None
    A = make.normal(20, shape[1 if input_gradient else 2], dtype=dtype)
    return (A, *weight, make.tensor(ends, torch.int32), bias, *nested, input_gradient)


@st.composite
def embedding_4bit(draw: Draw) -> Args:
    rows = draw(st.integers(1, 50))
    weight, nested = draw(weights(rows))
    shape = draw(st.lists(st.integers(0, 12), max_size=2))
    indices = draw(makers).integers(*shape, low=0, high=rows, dtype=draw(st.sampled_from((torch.int64, torch.int32))))
    return (indices, *weight, draw(dtypes), *nested)


@st.composite
def activations(draw: Draw) -> Args:
    shape = draw(st.one_of(matrices, st.sampled_from(((64, 2048), (300, 300), (17,), (2, 3, 40)))))
    return draw(values(shape, draw(dtypes))), draw(st.sampled_from((0.0, 0.5, 2.0, 6.0)))


@st.composite
def int8_vectorwise_dequant(draw: Draw) -> Args:
    shape = draw(matrices)
    return draw(makers).int8(*shape), draw(scales(shape[0]))


@st.composite
def factors(draw: Draw) -> tuple[Tensor, Tensor]:
    """int8 `[M, K]` and `[N, K]` of all values, -128 too."""
    (M, K), N, make = draw(matrices), draw(st.one_of(wide, st.integers(0, 3))), draw(makers)
    return tuple(make.integers(rows, K, low=-128, high=128, dtype=torch.int8) for rows in (M, N))


@st.composite
def int8_mm_dequant(draw: Draw) -> Args:
    shape, make, dtype = draw(matrices), draw(makers), draw(st.one_of(st.none(), dtypes))
    A = make.integers(*shape, low=-(10**6), high=10**6, dtype=torch.int32)
    bias = make.normal(shape[1], dtype=draw(dtypes)) if draw(st.booleans()) else None
    return A, make.positive(shape[0]), make.positive(shape[1]), dtype, bias


@st.composite
def int8_scaled_mm(draw: Draw) -> Args:
    (A, B), make = draw(factors()), draw(makers)
    bias = make.normal(len(B), dtype=draw(dtypes)) if draw(st.booleans()) else None
    return A, B, make.positive(len(A)), make.positive(len(B)), bias, draw(st.one_of(st.none(), dtypes))


@st.composite
def int8_mixed_scaled_mm(draw: Draw) -> Args:
    (CA, CB), make, dtype = draw(factors()), draw(makers), draw(dtypes)
    K = CA.shape[1]
    columns = draw(st.one_of(st.none(), st.lists(st.integers(0, max(0, K - 1)), max_size=min(5, K), unique=True)))
    outliers = None if columns is None else make.tensor(sorted(columns), torch.int64)
    bias = make.normal(len(CB), dtype=dtype) if draw(st.booleans()) else None
    return make.normal(*CA.shape, dtype=dtype), CA, CB, make.positive(len(CA)), make.positive(len(CB)), outliers, bias


@st.composite
def int8_linear(draw: Draw) -> Args:
    make, shape, dtype = draw(makers), draw(matrices), draw(dtypes)
    A, rows = make.normal(*shape, dtype=dtype), draw(wide)
    for column in draw(st.lists(positions, max_size=3)):
        A[:, column % max(1, shape[1]) : column % max(1, shape[1]) + 1] *= 20
    bias = make.normal(rows, dtype=dtype) if draw(st.booleans()) else None
    return A, make.int8(rows, shape[1]), make.positive(rows), bias, draw(st.sampled_from((0.0, 3.0, 6.0)))


def optimizer(form: StateFormat, many: bool) -> st.SearchStrategy[Args]:
    sizes = st.one_of(st.integers(0, 700), st.integers(60_000, 80_000)).map(lambda n: (n,))
    return st.builds(
        optimizer_args,
        st.just(form),
        st.just(many),
        makers,
        st.sampled_from(sorted(OPTIMIZER_STATES)),
        st.lists(sizes, min_size=1, max_size=4 if many else 1),
        dtypes,
        st.integers(1, 1000),
        st.sampled_from((0.0, 0.1)),
        st.booleans(),
    )


@st.composite
def percentile_clipping(draw: Draw) -> Args:
    make = draw(makers)
    grad = make.normal(*draw(shapes), dtype=draw(dtypes))
    return grad, make.positive(GNORM_HISTORY), draw(st.integers(0, 250)), draw(st.integers(0, 99))


@st.composite
def estimate_quantiles(draw: Draw) -> Args:
    A = draw(makers).normal(draw(st.integers(1, 5000)), dtype=draw(dtypes))
    return A, draw(st.sampled_from((0.0, 1 / 512, 0.1))), draw(st.sampled_from((1, 16, 256)))


ARGUMENTS: dict[str, st.SearchStrategy[Args]] = {
    "quantize_blockwise": quantize_blockwise(),
    "dequantize_blockwise": dequantize_blockwise(),
    "quantize_4bit": quantize_4bit(),
    "dequantize_4bit": dequantize_4bit(),
    "gemm_4bit": gemm_4bit(),
    "grouped_gemm_4bit": grouped_gemm_4bit(),
    "embedding_4bit": embedding_4bit(),
    "int8_vectorwise_quant": activations(),
    "int8_vectorwise_quant_mask": activations(),
    "int8_double_quant": activations(),
    "int8_vectorwise_dequant": int8_vectorwise_dequant(),
    "int8_mm": factors(),
    "int8_mm_dequant": int8_mm_dequant(),
    "int8_scaled_mm": int8_scaled_mm(),
    "int8_mixed_scaled_mm": int8_mixed_scaled_mm(),
    "int8_linear": int8_linear(),
    "optimizer_update_32bit": optimizer(FP32, many=False),
    "optimizer_step_32bit": optimizer(FP32, many=True),
    "optimizer_update_8bit": optimizer(PER_TENSOR, many=False),
    "optimizer_step_8bit": optimizer(PER_TENSOR, many=True),
    "optimizer_update_8bit_blockwise": optimizer(BLOCKWISE, many=False),
    "optimizer_step_8bit_blockwise": optimizer(BLOCKWISE, many=True),
    "percentile_clipping": percentile_clipping(),
    "estimate_quantiles": estimate_quantiles(),
}


def laid_out(draw: Draw, value: Any) -> Any:
    """The same values, some tensors with gaps, transposed in memory, or not where an allocation begins."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return type(value)(laid_out(draw, item) for item in value)
    if not isinstance(value, Tensor) or not value.numel():
        return value
    layout = draw(st.sampled_from(("as it is", "as it is", "shifted", "gaps", "transposed")))
    if layout == "shifted":
        memory = value.new_empty(value.numel() + 3)
        return memory[3:].view(value.shape).copy_(value)
    if layout == "gaps":
        return value.new_zeros(*value.shape, 2)[..., 1].copy_(value)
    if layout == "transposed" and value.ndim >= 2:
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    return value


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(op: Op, kernel: str, args: Args, threads: int = 1) -> list[Any]:
    torch.set_num_threads(threads)
    copies = fresh(args)
    with force(kernel):
        returned = getattr(torch.ops.bnb_core, op.name).default(*copies)
    return op.outcome(returned, copies)


def taken_by(op: Op, args: Args) -> list[Kernel]:
    """The native kernels that take these arguments here."""
    rows = [row for row in kernels_for(op.name, "cpu") if row.is_native and row.outside_limits(args) is None]
    return [row for row in rows if row.refusal is None or row.refusal(*args) is None]


NATIVE = [op for op in OPS.values() if any(row.is_native for row in kernels_for(op.name, "cpu"))]


def test_every_operator_has_random_arguments() -> None:
    assert set(ARGUMENTS) == set(OPS)


@pytest.mark.parametrize("op", NATIVE, ids=lambda op: op.name)
@settings(
    max_examples=MANY if LEVEL == "full" else FEW,
    deadline=None,
    derandomize=LEVEL != "full",
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_levels_agree_with_the_reference(op: Op, data: st.DataObject) -> None:
    args = laid_out(data.draw, op.complete(data.draw(ARGUMENTS[op.name])))
    expected = run(op, "reference", args)
    for kernel in taken_by(op, args):
        note(kernel.name)
        found = run(op, kernel.name, args)
        assert not differences(found, expected, kernel.tolerance or op.tolerance)
        threads = data.draw(st.integers(2, 4), label="threads")
        assert not differences(run(op, kernel.name, args, threads), found, EXACT), f"{threads} threads"
