"""The functions beneath the layers: buffers, states, nested statistics, int8 products, older names."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import bnb_core
from bnb_core import functional as F
from bnb_core.ops_registry import codebooks

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden vectors are not beside this clone")


@pytest.fixture
def normal(device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    return make


@pytest.fixture
def int8(device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator).to(device)


def exact(A: Tensor, B: Tensor) -> Tensor:
    return (A.cpu().long() @ B.cpu().long()).int().to(A.device)


def codes_apart(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


# -- tables ------------------------------------------------------------------------------------------------------------


def table(name: str) -> Tensor:
    """A table of the public package by its name in the golden file."""
    kind, *words = name.split(".")
    if kind == "get_4bit_type":
        return F.get_4bit_type(words[0])
    signed = "unsigned" not in words
    bits = next((int(word.removesuffix("bit")) for word in words if word.endswith("bit")), 8)
    if kind == "dynamic_map":
        return F.create_dynamic_map(signed, bits - 1, bits)
    if kind == "linear_map":
        return F.create_linear_map(signed, bits, add_zero="add_zero=False" not in words)
    if kind == "normal_map":
        return F.create_normal_map(use_extra_value="use_extra_value=False" not in words)
    exponent, precision = int(words[-1][1]), int(words[-1][3])
    return F.create_fp8_map(signed, exponent, precision, exponent + precision + signed)


@needs_golden
def test_tables_are_those_of_the_public_package() -> None:
    for name, expected in load_file(GOLDEN / "tables.safetensors").items():
        assert torch.equal(table(name), expected), name


def test_tables_are_the_callers_own(device: torch.device) -> None:
    for make in (F.create_dynamic_map, F.create_linear_map, F.create_normal_map, F.create_fp8_map):
        make().zero_()
        assert make().any()
    F.get_4bit_type("nf4", device).zero_()
    assert torch.equal(F.get_4bit_type("nf4", device), codebooks.four_bit("nf4", device))
    _, state = F.quantize_nf4(torch.randn(4, 64, device=device), compress_statistics=True)
    state.code.zero_()
    state.state2.code.zero_()
    assert codebooks.four_bit("nf4", device).any()
    assert codebooks.dynamic_map(device=device).any()


def test_get_4bit_type(device: torch.device) -> None:
    code = F.get_4bit_type("af4", device=device)
    assert (code.shape, code.device) == ((16,), device)
    for typename, blocksize in (("nf5", 64), ("af4", 128)):
        with pytest.raises(NotImplementedError, match=f"{typename}' for blocks of {blocksize}"):
            F.get_4bit_type(typename, blocksize=blocksize)


def test_quantile_map(normal: Callable[..., Tensor]) -> None:
    code = F.create_quantile_map(normal(10_000))
    assert code.shape == (256,)
    assert code.abs().max() == 1
    assert (code.diff() >= 0).all()
    assert (code == 0).any()


# -- 8-bit blockwise ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [False, True])
def test_blockwise_round_trip(normal: Callable[..., Tensor], dtype: torch.dtype, nested: bool) -> None:
    A = normal(33, 130, dtype=dtype)
    codes, state = F.quantize_blockwise(A, blocksize=64, nested=nested)
    assert state.nested == nested
    restored = F.dequantize_blockwise(codes, state)
    assert (restored.dtype, restored.shape) == (dtype, A.shape)
    assert (restored - A).abs().max() < (0.2 if nested else 0.1)
    out = torch.empty_like(A)
    assert F.dequantize_blockwise(codes, state, out=out) is out
    assert torch.equal(out, restored)


def test_blockwise_buffers_are_filled(normal: Callable[..., Tensor], device: torch.device) -> None:
    A = normal(3, 100)
    expected, state = F.quantize_blockwise(A, blocksize=64)
    out, absmax = torch.empty(3, 100, dtype=torch.uint8, device=device), torch.empty(5, device=device)
    for buffers in ({"out": out}, {"absmax": absmax}, {"out": out, "absmax": absmax}):
        out.zero_()
        absmax.zero_()
        codes, found = F.quantize_blockwise(A, blocksize=64, **buffers)
        assert torch.equal(codes, expected)
        assert found == state
        assert (codes is out) == ("out" in buffers)
        assert (found.absmax is absmax) == ("absmax" in buffers)
    half = torch.empty(3, 100, dtype=torch.float16, device=device)
    assert F.dequantize_blockwise(codes, absmax=absmax, blocksize=64, out=half) is half
    assert torch.equal(half, F.dequantize_blockwise(codes, state).half())
    with pytest.raises(RuntimeError, match="out_q"):
        F.quantize_blockwise(A, blocksize=64, out=out[0])


def test_blockwise_takes_a_code_from_the_cpu(normal: Callable[..., Tensor]) -> None:
    A = normal(1000)
    codes, state = F.quantize_blockwise(A, code=F.create_linear_map(), blocksize=256)
    restored = F.dequantize_blockwise(codes, absmax=state.absmax, code=F.create_linear_map(), blocksize=256)
    assert torch.equal(restored, F.dequantize_blockwise(codes, state))


def test_blockwise_refuses_what_it_cannot_honour(normal: Callable[..., Tensor], device: torch.device) -> None:
    codes, state = F.quantize_blockwise(normal(100))
    with pytest.raises(ValueError, match="either quant_state or absmax"):
        F.dequantize_blockwise(codes)
    with pytest.raises(ValueError, match="either quant_state or absmax"):
        F.dequantize_blockwise(codes, state, absmax=state.absmax)
    with pytest.raises(ValueError, match="nested=True needs"):
        F.dequantize_blockwise(codes, state, nested=True)
    with pytest.raises(ValueError, match="nested=True does not keep"):
        F.quantize_blockwise(normal(100), absmax=torch.empty(1, device=device), nested=True)


# -- 4-bit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_4bit_round_trip(normal: Callable[..., Tensor], dtype: torch.dtype, quant_type: str, nested: bool) -> None:
    A = normal(33, 130, dtype=dtype)
    packed, state = F.quantize_4bit(A, quant_type=quant_type, compress_statistics=nested)
    assert (state.blocksize, state.nested, state.shape, state.dtype) == (64, nested, A.shape, dtype)
    restored = F.dequantize_4bit(packed, state)
    assert (restored.dtype, restored.shape) == (dtype, A.shape)
    assert (restored - A).float().square().mean().sqrt() < 0.15
    transposed = F.dequantize_4bit(packed.t(), state)
    assert torch.equal(transposed, restored.t())
    named = {"nf4": (F.quantize_nf4, F.dequantize_nf4), "fp4": (F.quantize_fp4, F.dequantize_fp4)}
    quantize, dequantize = named[quant_type]
    again, again_state = quantize(A, compress_statistics=nested)
    assert torch.equal(again, packed)
    assert again_state == state
    assert torch.equal(dequantize(packed, state), restored)


def test_4bit_buffers_are_filled(normal: Callable[..., Tensor], device: torch.device) -> None:
    A = normal(8, 64)
    expected, state = F.quantize_nf4(A)
    out, absmax = torch.empty_like(expected), torch.empty_like(state.absmax)
    packed, found = F.quantize_4bit(A, absmax, out, quant_type="nf4")
    assert packed is out
    assert found.absmax is absmax
    assert torch.equal(packed, expected)
    assert found == state
    values = torch.empty(8, 64, dtype=torch.bfloat16, device=device)
    assert F.dequantize_4bit(packed, absmax=absmax, out=values, quant_type="nf4") is values
    assert torch.equal(values, F.dequantize_4bit(packed, state).bfloat16())
    with pytest.raises(ValueError, match=r"absmax is torch.float32 \(7,\) on .*, expected torch.float32 \(8,\)"):
        F.quantize_4bit(A, absmax[1:], quant_type="nf4")
    with pytest.raises(ValueError, match=r"out is torch.float32 \(256, 1\) on .*, expected torch.uint8"):
        F.quantize_4bit(A, out=out.float(), quant_type="nf4")


def test_4bit_refuses_what_it_cannot_honour(normal: Callable[..., Tensor], device: torch.device) -> None:
    packed, state = F.quantize_nf4(normal(8, 64))
    with pytest.raises(ValueError, match="either quant_state or absmax"):
        F.dequantize_4bit(packed)
    with pytest.raises(ValueError, match="either quant_state or absmax"):
        F.dequantize_4bit(packed, state, absmax=state.absmax)
    with pytest.raises(ValueError, match="out must say shape and dtype"):
        F.dequantize_4bit(packed, absmax=state.absmax)
    with pytest.raises(ValueError, match="blocksize is 128, but that of quant_state is 64"):
        F.dequantize_4bit(packed, state, blocksize=128)
    with pytest.raises(ValueError, match="quant_state is of nf4, expected fp4"):
        F.dequantize_fp4(packed, state)
    with pytest.raises(ValueError, match="compress_statistics=True does not keep"):
        F.quantize_4bit(normal(8, 64), torch.empty(8, device=device), compress_statistics=True)
    with pytest.raises(RuntimeError, match="quant_type is 'int4', expected 'nf4' or 'fp4'"):
        F.quantize_4bit(normal(8, 64), quant_type="int4")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_nested_statistics_do_not_depend_on_the_threads(
    normal: Callable[..., Tensor], threads: Callable[[int], None]
) -> None:
    A = normal(2048, 2048)
    states = []
    for count in (1, 2, 4):
        threads(count)
        states.append(F.quantize_4bit(A, blocksize=16, compress_statistics=True)[1])
    assert torch.allclose(
        states[0].offset, F.quantize_4bit(A, blocksize=16)[1].absmax.double().mean().float(), rtol=1e-6
    )
    for state in states[1:]:
        assert torch.equal(state.offset, states[0].offset)
        assert state == states[0]


@needs_golden
@pytest.mark.parametrize("name", ["nf4.fp32", "nf4.bf16", "fp4.fp32", "fp4.bf16"])
def test_nested_statistics_are_those_of_the_public_package(name: str, device: torch.device) -> None:
    golden = {
        key.removeprefix(f"{name}/"): tensor
        for key, tensor in load_file(GOLDEN / "nested.safetensors", str(device)).items()
        if key.startswith(f"{name}/")
    }
    packed, state = F.quantize_4bit(golden["W"], quant_type=name[:3], compress_statistics=True)
    assert torch.equal(packed, golden["packed"])
    assert torch.allclose(state.offset, golden["offset"], rtol=1e-6)
    # its codes come from a table of 65536 bins, which is off by one now and then
    assert codes_apart(state.absmax, golden["absmax8"]) <= 1
    assert (state.absmax != golden["absmax8"]).float().mean() < 0.01
    assert torch.allclose(state.state2.absmax, golden["state2.absmax"], rtol=1e-6)
    assert torch.equal(state.state2.code, golden["state2.code"])
    entries = {key.removeprefix("as_dict/"): value for key, value in golden.items() if key.startswith("as_dict/")}
    theirs = bnb_core.QuantState.from_dict(entries, device)
    assert torch.equal(theirs.scales(), golden["absmax_restored"])
    assert torch.equal(F.dequantize_4bit(packed, theirs), golden["dequant"])
    again = theirs.as_dict(packed=True)
    assert set(again) == set(entries)
    assert all(torch.equal(again[key].to(device), entries[key]) for key in entries)


@needs_golden
def test_nested_blockwise_is_that_of_the_public_package(device: torch.device) -> None:
    golden = {
        key.removeprefix("q8nested.bs64/"): tensor
        for key, tensor in load_file(GOLDEN / "nested.safetensors", str(device)).items()
        if key.startswith("q8nested.bs64/")
    }
    codes, state = F.quantize_blockwise(golden["A"], blocksize=64, nested=True)
    assert codes_apart(codes, golden["q"]) <= 3
    assert codes_apart(state.absmax, golden["absmax8"]) <= 1
    assert torch.allclose(state.offset, golden["offset"], rtol=1e-6)
    assert torch.allclose(state.state2.absmax, golden["state2.absmax"], rtol=1e-6)


def test_a_scale_that_is_not_finite_poisons_its_own_group_only(normal: Callable[..., Tensor]) -> None:
    A = normal(600, 64)
    A[300, 5] = torch.inf
    A[301, 5] = torch.nan
    packed, state = F.quantize_nf4(A, compress_statistics=True)
    lost = F.dequantize_4bit(packed, state).isnan().all(dim=1)
    assert torch.equal(lost.nonzero().flatten().cpu(), torch.arange(256, 512))
    finite = F.quantize_nf4(A)[1].absmax.isfinite()
    assert torch.allclose(state.offset, F.quantize_nf4(A)[1].absmax[finite].mean())
    packed, state = F.quantize_nf4(torch.full_like(A, torch.nan), compress_statistics=True)
    assert state.offset == 0
    assert F.dequantize_4bit(packed, state).isnan().all()


@pytest.mark.parametrize("nested", [False, True])
def test_gemv_4bit(normal: Callable[..., Tensor], nested: bool) -> None:
    packed, state = F.quantize_nf4(normal(16, 64), compress_statistics=nested)
    A = normal(1, 64)
    expected = (A.double().cpu() @ F.dequantize_4bit(packed, state).double().cpu().t()).float()
    result = F.gemv_4bit(A, packed, state=state)
    assert torch.allclose(result.cpu(), expected, atol=1e-5)
    out = torch.empty_like(result)
    assert F.gemv_4bit(A, packed.t(), out, state=state) is out
    assert torch.equal(out, result)
    with pytest.raises(ValueError, match="state is needed"):
        F.gemv_4bit(A, packed)
    with pytest.raises(ValueError, match="must be False"):
        F.gemv_4bit(A, packed, transposed_B=True, state=state)


def test_nested_statistics_of_another_group_size(normal: Callable[..., Tensor]) -> None:
    packed, state = F.quantize_nf4(normal(16, 64))
    codes, state2 = F.quantize_blockwise(state.absmax, blocksize=4)
    grouped = copy.copy(state)
    grouped.absmax, grouped.state2, grouped.offset = codes, state2, torch.zeros_like(state.absmax[0])
    A = normal(3, 64)
    expected = A @ F.dequantize_4bit(packed, grouped).t()
    assert torch.allclose(bnb_core.matmul_4bit(A, packed, grouped), expected, atol=1e-5)


# -- QuantState --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "nested", "blockwise"])
def state(request: pytest.FixtureRequest, normal: Callable[..., Tensor]) -> bnb_core.QuantState:
    A = normal(40, 64)
    if request.param == "blockwise":
        return F.quantize_blockwise(A, blocksize=64, nested=True)[1]
    return F.quantize_nf4(A, compress_statistics=request.param == "nested")[1]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("prefix", ["", "layers.0.weight."])
def test_state_goes_through_a_dictionary(state: Any, device: torch.device, packed: bool, prefix: str) -> None:
    entries = {prefix + key: value for key, value in state.as_dict(packed).items()}
    if packed and state.quant_type is not None:
        assert all(isinstance(value, Tensor) for value in entries.values())
    assert bnb_core.QuantState.from_dict(entries, device) == state


def test_a_state_that_came_back_from_meta_forgets_what_was_there_before(state: Any, device: torch.device) -> None:
    assert state.to("meta").to(device).absmax.device.type == device.type
    state.absmax = state.absmax.flip(0)
    assert torch.equal(state.map(torch.clone).absmax, state.absmax)


def test_state_is_copied_and_pickled(state: Any) -> None:
    shallow, deep, pickled = copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))
    file = io.BytesIO()
    torch.save({"state": state}, file)
    file.seek(0)
    for other in (shallow, deep, pickled, torch.load(file, weights_only=True)["state"]):
        assert other == state
        assert other is not state
    assert shallow.absmax is state.absmax
    assert deep.absmax is not state.absmax


def test_states_differ_by_any_field(state: Any, device: torch.device) -> None:
    assert state != "another thing"
    for name, value in {"blocksize": 7, "dtype": torch.float16, "quant_type": "fp4", "shape": torch.Size([1])}.items():
        other = copy.copy(state)
        setattr(other, name, value)
        assert other != state
    other = copy.deepcopy(state)
    other.code[0] += 1
    assert other != state
    other = copy.deepcopy(state)
    other.absmax[0] = torch.nan if state.absmax.is_floating_point() else 255 - other.absmax[0]
    assert other != state
    assert other == copy.deepcopy(other)


def test_state_moves_in_place_or_not(state: Any, device: torch.device) -> None:
    assert state.moved_to(device) is state
    moved = state.moved_to("meta")
    assert moved.absmax.is_meta
    assert moved.code.is_meta
    assert state.absmax.device == device
    absmax = state.absmax
    assert state.to(device) is state
    assert state.absmax is absmax
    assert state.to("meta") is state
    assert state.absmax.is_meta
    if state.nested:
        assert state.offset.is_meta
        assert state.state2.absmax.is_meta


def test_state_comes_back_from_meta(state: Any, device: torch.device) -> None:
    moved = state.moved_to("meta")
    assert moved.moved_to("meta") is moved
    assert moved.moved_to(device) == state
    kept = copy.deepcopy(state)
    assert state.to("meta").to(device) is state
    assert state == kept


def test_state_as_a_list(state: Any) -> None:
    nested = [state.offset, state.state2] if state.nested else None
    expected = [state.absmax, state.shape, state.dtype, state.blocksize, nested, state.quant_type]
    for index, value in enumerate(expected):
        assert state[index] is value or state[index] == value


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"absmax": None}, "absmax is a NoneType, expected a tensor"),
        ({"quant_map": torch.zeros(16, dtype=torch.float16)}, "quant_map is float16, expected float32"),
        ({"blocksize": 0}, "blocksize is 0, expected an integer of at least 1"),
        ({"shape": [40, -64]}, r"shape is \[40, -64\], expected a list of sizes"),
        ({"dtype": torch.float32}, "dtype is torch.float32, expected the name of a dtype"),
        ({"quant_type": "int4"}, "quant_type is 'int4', expected one of nf4, fp4"),
        ({"quant_states": 1}, "quant_states is unknown"),
        ({"weight.absmax": torch.zeros(40)}, "absmax is given twice"),
        ({"nested_offset": 1.0}, "absmax is float32, expected uint8"),
        ({"quant_state.bitsandbytes__nf4": "{}"}, "quant_state.bitsandbytes__nf4 is a str, expected a tensor"),
    ],
)
def test_a_bad_dictionary_is_refused(normal: Callable[..., Tensor], change: dict[str, Any], sentence: str) -> None:
    entries = F.quantize_nf4(normal(40, 64))[1].as_dict()
    with pytest.raises(ValueError, match=sentence):
        bnb_core.QuantState.from_dict(entries | change, "cpu")


def test_dictionaries_as_bytes() -> None:
    values = {"a": 1, "b": [1.5, None], "c": "é"}
    packed = F.pack_dict_to_tensor(values)
    assert (packed.dtype, packed.device.type) == (torch.uint8, "cpu")
    assert F.unpack_tensor_to_dict(packed) == values
    for bad in (packed.int(), packed[1:], torch.tensor(list(b"[1]"), dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"JSON|Expecting|Extra"):
            F.unpack_tensor_to_dict(bad)


# -- int8 --------------------------------------------------------------------------------------------------------------


def test_int8_rows_and_columns(normal: Callable[..., Tensor], device: torch.device) -> None:
    A = normal(12, 40)
    A[3, 7] = 20
    rows, row_stats, none = F.int8_vectorwise_quant(A)
    assert none is None
    assert (F.int8_vectorwise_dequant(rows, row_stats) - A).abs().max() <= 20 / 254 + 1e-6
    by_row, by_column, row_absmax, column_absmax, outliers = F.int8_double_quant(A, threshold=6.0)
    assert outliers.tolist() == [7]
    buffers = {"out_row": by_row, "out_col": by_column, "row_stats": row_absmax, "col_stats": column_absmax}
    empty = {name: torch.empty_like(tensor) for name, tensor in buffers.items()}
    filled = F.double_quant(A, threshold=6.0, **empty)
    for name, result in zip(("out_row", "out_col", "row_stats", "col_stats"), filled[:4], strict=True):
        assert result is empty[name]
        assert torch.equal(result, buffers[name])
    with pytest.raises(ValueError, match="row_stats is"):
        F.int8_double_quant(A, row_stats=torch.empty(11, device=device))


def test_int8_products(int8: Callable[..., Tensor], device: torch.device) -> None:
    A, B = int8(3, 5, 200), int8(7, 200)
    expected = exact(A, B.t())
    out = torch.empty(3, 5, 7, dtype=torch.int32, device=device)
    assert torch.equal(F.int8_linear_matmul(A, B), expected)
    assert F.int8_linear_matmul(A, B, out) is out
    assert torch.equal(out, expected)
    product, layout = F.igemmlt(A, B, (A.shape, "row"), (B.shape, "row"))
    assert torch.equal(product, expected)
    assert layout == (expected.shape, "row")
    with pytest.raises(ValueError, match="'col32', expected 'row'"):
        F.igemmlt(A, B, (A.shape, "col32"), None)
    with pytest.raises(ValueError, match=r"dtype is torch.int8, expected torch.int32"):
        F.int8_linear_matmul(A, B, dtype=torch.int8)


@pytest.mark.parametrize("transposed_A", [False, True])
@pytest.mark.parametrize("transposed_B", [False, True])
def test_igemm(int8: Callable[..., Tensor], device: torch.device, transposed_A: bool, transposed_B: bool) -> None:
    A, B = int8(9, 300), int8(300, 11)
    given = (A.t().contiguous() if transposed_A else A, B.t().contiguous() if transposed_B else B)
    out = torch.empty(9, 11, dtype=torch.int32, device=device)
    assert torch.equal(F.igemm(*given, None, transposed_A, transposed_B), exact(A, B))
    assert F.igemm(*given, out, transposed_A, transposed_B) is out
    assert torch.equal(out, exact(A, B))
    batched = [tensor.expand(4, -1, -1) for tensor in given]
    out = torch.empty(4, 9, 11, dtype=torch.int32, device=device)
    expected = exact(A, B).expand(4, -1, -1)
    assert torch.equal(F.batched_igemm(*batched, None, transposed_A, transposed_B), expected)
    assert F.batched_igemm(*batched, out, transposed_A, transposed_B) is out
    assert torch.equal(out, expected)


def test_igemm_of_three_dimensions(int8: Callable[..., Tensor]) -> None:
    A, B = int8(2, 5, 64), int8(64, 7)
    assert torch.equal(F.igemm(A, B), exact(A, B))
    C = int8(2, 5, 9)
    assert torch.equal(F.igemm(A, C), exact(A.flatten(0, 1).t(), C.flatten(0, 1)))
    with pytest.raises(ValueError, match="no transposed operand"):
        F.igemm(A, C, transposed_A=True)
    with pytest.raises(ValueError, match=r"expected \[b, …, …\] twice"):
        F.batched_igemm(A, B)
    assert F.batched_igemm(A[:0], C.mT[:0]).shape == (0, 5, 5)


def test_int8_mm_dequant(normal: Callable[..., Tensor], device: torch.device) -> None:
    A, B, bias = normal(6, 80), normal(5, 80), normal(5)
    (a, a_stats, _), (b, b_stats, _) = F.int8_vectorwise_quant(A), F.int8_vectorwise_quant(B)
    product = F.int8_linear_matmul(a, b)
    result = F.int8_mm_dequant(product, a_stats, b_stats, bias=bias)
    assert result.dtype == torch.float16
    assert torch.allclose(result.float(), A @ B.t() + bias, atol=0.3)
    out = torch.empty(6, 5, device=device)
    assert F.mm_dequant(product, None, a_stats, b_stats, out, bias) is out
    assert torch.allclose(out, result.float(), atol=1e-2)


# -- optimizers and older names ----------------------------------------------------------------------------------------


def test_optimizer_updates_are_the_operators(normal: Callable[..., Tensor], device: torch.device) -> None:
    g, p = normal(300), normal(300)
    states = torch.zeros(2, 300, device=device)
    before = p.clone()
    F.optimizer_update_32bit("adam", g, p, states[0], 0.9, 1e-8, 1, 0.01, state2=states[1], beta2=0.999)
    assert torch.allclose(p, before - 0.01 * g / (g.abs() + 1e-8), atol=1e-5)
    momentum, norm = torch.zeros(300, device=device), torch.zeros(1, device=device)
    F.optimizer_update_32bit("lars", g, p, momentum, 0.9, 0.0, 1, 0.01, unorm_vec=norm, max_unorm=0.02)
    assert momentum.any()
    before, codes = p.clone(), torch.zeros(2, 300, dtype=torch.uint8, device=device)
    maps = F.create_dynamic_map().to(device), F.create_dynamic_map(signed=False).to(device)
    scales = torch.zeros(2, 2, device=device)
    F.optimizer_update_8bit_blockwise(
        *("adam", g, p, codes[0], codes[1], 0.9, 0.999, 0.0, 0.0, 1e-8, 1, 0.01, *maps, scales[0], scales[1])
    )
    assert torch.allclose(p, before - 0.01 * g.sign(), atol=5e-4)
    assert (scales > 0).all()


def test_percentile_clipping(normal: Callable[..., Tensor], device: torch.device) -> None:
    grad, history = normal(500), torch.full((100,), 4.0, device=device)
    norm, limit, scale = F.percentile_clipping(grad, history, 7)
    assert torch.allclose(norm, grad.norm())
    assert torch.allclose(history[7], grad.norm() ** 2)
    assert limit == 2
    assert torch.allclose(scale, 2 / norm)


def test_estimate_quantiles(normal: Callable[..., Tensor], device: torch.device) -> None:
    A = normal(5000)
    out = torch.empty(256, device=device)
    assert F.estimate_quantiles(A, out) is out
    positions = torch.linspace(1 / 512, 1 - 1 / 512, 256)
    assert torch.allclose(out.cpu(), torch.quantile(A.cpu(), positions), atol=1e-4)
    assert F.estimate_quantiles(A, num_quantiles=16).shape == (16,)


def test_quantize_by_the_whole_tensor(normal: Callable[..., Tensor]) -> None:
    A = normal(70, 70)
    codes, state = F.quantize(A)
    restored = F.dequantize(codes, state)
    assert (restored - A).abs().max() < 0.1
    assert torch.equal(F.dequantize(codes, absmax=A.abs().max(), code=state[1]), restored)
    for arguments in ({}, {"state": state, "absmax": state[0]}):
        with pytest.raises(ValueError, match="either state or absmax"):
            F.dequantize(codes, **arguments)


def test_quantize_without_a_scale(normal: Callable[..., Tensor], device: torch.device) -> None:
    code = F.create_linear_map().to(device)
    A = normal(50, 4).clamp(-1, 1)
    codes = F.quantize_no_absmax(A, code)
    assert (F.dequantize_no_absmax(codes, code) - A).abs().max() <= 1 / 254 + 1e-6
    tie = (code[10] + code[11]) / 2
    assert F.quantize_no_absmax(tie, code) == 10


@pytest.mark.parametrize("quant_type", ["vector", "row", "linear"])
def test_vectorwise_quantization(normal: Callable[..., Tensor], quant_type: str) -> None:
    x = normal(6, 50)
    x[2] = 0
    codes, largest = F.vectorwise_quant(x, quant_type=quant_type)
    assert largest.shape == (() if quant_type == "linear" else (6, 1))
    assert (F.vectorwise_dequant(codes, largest, quant_type) - x).abs().max() <= x.abs().max() / 254 + 1e-6


def test_vectorwise_quantization_of_another_kind(normal: Callable[..., Tensor]) -> None:
    for call in (F.vectorwise_quant, F.vectorwise_dequant):
        with pytest.raises(ValueError, match="quant_type is 'zeropoint'"):
            call(normal(2, 2), 1, quant_type="zeropoint")


@pytest.mark.parametrize(
    "quantize",
    [F.quantize_blockwise, F.quantize_nf4, F.int8_vectorwise_quant, F.int8_double_quant, F.int8_weight_quant],
    ids=lambda f: f.__name__,
)
def test_quantizing_a_parameter_records_no_gradient(quantize: Callable[..., Any], device: torch.device) -> None:
    results = quantize(torch.nn.Parameter(torch.randn(8, 64, device=device)))
    tensors = [part.absmax if isinstance(part, F.QuantState) else part for part in results if part is not None]
    assert not any(tensor.requires_grad for tensor in tensors)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_states_of_the_other_kind_are_refused(normal: Callable[..., Tensor]) -> None:
    A, x = normal(8, 64), normal(2, 64)
    packed, four_bit = F.quantize_4bit(A)
    codes, blockwise = F.quantize_blockwise(A)
    with pytest.raises(ValueError, match="that of fp4 codes: use dequantize_4bit"):
        F.dequantize_blockwise(codes, four_bit)
    calls: list[Callable[[], Tensor]] = [
        lambda: F.dequantize_4bit(packed, blockwise),
        lambda: F.gemv_4bit(x, packed, state=blockwise),
        lambda: bnb_core.matmul_4bit(x, packed, blockwise),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not that of 4-bit codes"):
            call()


def test_int8_products_refuse_shapes_that_do_not_fit(int8: Callable[..., Tensor], device: torch.device) -> None:
    out = torch.empty(4, 1, 7, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"out is torch.int32 \(4, 1, 7\).*expected torch.int32 \(4, 5, 7\)"):
        F.batched_igemm(int8(4, 5, 64), int8(4, 64, 7), out)
    for shape in ((5, 2, 9), (2, 4, 9), (10, 1, 9)):
        with pytest.raises(ValueError, match="the same b and s"):
            F.igemm(int8(2, 5, 64), int8(*shape))
    with pytest.raises(ValueError, match=r"the weight has shape \(8,\), expected \[N, K\]"):
        F.int8_weight_quant(torch.ones(8, device=device))


def test_check_matmul(int8: Callable[..., Tensor]) -> None:
    shapes: list[tuple[tuple[int, ...], tuple[int, ...], bool, bool]] = [
        ((5, 64), (64, 7), False, False),
        ((64, 5), (7, 64), True, True),
        ((2, 5, 64), (7, 64), False, True),
        ((2, 64, 5), (64, 7), True, False),
        ((2, 5, 64), (2, 5, 7), False, False),
    ]
    for a, b, *flags in shapes:
        A, B = int8(*a), int8(*b)
        assert F.check_matmul(A, B, None, *flags) == F.igemm(A, B, None, *flags).shape
    A, B = int8(5, 64), int8(64, 7)
    for arguments, sentence in (
        ((A, B.t(), None), "products of 64 by 7 elements"),
        ((A.float(), B, None), "expected torch.int8 twice"),
        ((A, B[0], None), r"expected \[…, M, K\]"),
        ((A, B, torch.empty(7, 5)), r"out has shape \(7, 5\), expected \(5, 7\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            F.check_matmul(*arguments, False, False)


# -- more of the older names -------------------------------------------------------------------------------------------


def test_optimizer_update_8bit_gives_new_scales_in_place_and_in_buffers(
    normal: Callable[..., Tensor], device: torch.device
) -> None:
    g, p = normal(300), normal(300)
    before, codes = p.clone(), torch.zeros(2, 300, dtype=torch.uint8, device=device)
    maps = F.create_dynamic_map().to(device), F.create_dynamic_map(signed=False).to(device)
    max1, max2, new1, new2 = torch.zeros(4, 1, device=device)
    arguments = ("adam", g, p, codes[0], codes[1], 0.9, 0.999, 1e-8, 1, 0.01, *maps, max1, max2)
    with pytest.raises(ValueError, match="new_max2 is"):
        F.optimizer_update_8bit(*arguments, new1, new2.double())
    assert torch.equal(p, before)
    F.optimizer_update_8bit(*arguments, new1, new2)
    assert torch.allclose(p, before - 0.01 * g.sign(), atol=5e-4)
    assert torch.allclose(max1, 0.1 * g.abs().max())
    assert torch.allclose(max2, 0.001 * g.square().max())
    assert (new1, new2) == (max1, max2)


@pytest.mark.parametrize("quant_type", ["vector", "linear"])
def test_vectorwise_mm_dequant(normal: Callable[..., Tensor], quant_type: str) -> None:
    A, B = normal(6, 80), normal(80, 5)
    (a, a_max), (b, b_max) = F.vectorwise_quant(A, 1, quant_type), F.vectorwise_quant(B, 0, quant_type)
    result = F.vectorwise_mm_dequant(F.igemm(a, b), a_max, b_max, torch.float32, quant_type)
    expected = F.vectorwise_dequant(a, a_max, quant_type) @ F.vectorwise_dequant(b, b_max, quant_type)
    assert torch.allclose(result, expected, atol=1e-4)
    with pytest.raises(ValueError, match="'zeropoint'"):
        F.vectorwise_mm_dequant(F.igemm(a, b), a_max, b_max, quant_type="zeropoint")


def test_state_lists_its_keys(state: Any) -> None:
    assert bnb_core.QuantState.valid_quant_types == ("fp4", "nf4")
    assert bnb_core.QuantState.valid_qs_type_keys == ["bitsandbytes__fp4", "bitsandbytes__nf4"]
    assert set(state.as_dict()) <= set(bnb_core.QuantState.valid_qs_keys)


def test_nested_scales_are_dequantized_in_place(device: torch.device) -> None:
    """As loaders of others do that want fp32 scales."""
    W = torch.randn(48, 128, device=device)
    packed, state = F.quantize_4bit(W, compress_statistics=True, quant_type="nf4")
    want = F.dequantize_4bit(packed, state)
    state.absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
    state.nested = False
    assert state.offset is None and state.state2 is None
    assert torch.equal(F.dequantize_4bit(packed, state), want)
    with pytest.raises(ValueError, match="nested statistics are an offset and a state2"):
        state.nested = True
