"""Checkpoints of linear layers: the bytes of the public package, both ways.

The vectors are its modules' state dicts, inputs, outputs and gradients; a few of them lie in `golden_small`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import public_package
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import bnb_core
from bnb_core import functional as F
from bnb_core import nn

SMALL = Path(__file__).parent / "golden_small" / "state_dicts"
ALL = Path(__file__).parents[2] / "shared" / "golden" / "state_dicts"
FILES = sorted((ALL if ALL.is_dir() else SMALL).glob("linear*.safetensors"))
NAMES = {"torch": torch, "float32": torch.float32, "Linear4bit": nn.Linear4bit, "Linear8bitLt": nn.Linear8bitLt}


class Golden:
    """One file: the constructor's call, the state dict, and what belongs to it."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.device = device
        with safe_open(path, "pt") as file:
            self.call = file.metadata()["module"]
        tensors = load_file(path, str(device))
        self.state_dict = {key: tensor for key, tensor in tensors.items() if not key.startswith("__")}
        self.extra = {key.removeprefix("__"): tensor for key, tensor in tensors.items() if key.startswith("__")}
        self.source = {"weight": self.extra["source_weight"], "bias": self.state_dict["bias"]}
        self.is_4bit = "4bit" in self.call

    def layer(self, device: torch.device | str | None = None) -> torch.nn.Linear:
        """A new layer, as the public package's was made."""
        with torch.device(device or self.device):
            return eval(self.call, NAMES)  # the call stands in our own test data


def vectors(pattern: str) -> Any:
    def read(request: pytest.FixtureRequest, device: torch.device) -> Golden:
        return Golden(request.param, device)

    return pytest.fixture(read, params=[p for p in FILES if p.match(pattern)], ids=lambda path: path.stem)


golden = vectors("*")
golden_4bit = vectors("linear4bit.*")
golden_8bit = vectors("linear8bitlt.*")


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8)


def assert_same_bytes(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), key
        assert torch.equal(as_bytes(found[key]), as_bytes(tensor)), key


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().float(), expected.float()
    return float((found - expected).abs().max() / expected.abs().max())


def test_there_are_vectors() -> None:
    assert len(FILES) >= 4


def test_quantizing_gives_the_same_bytes(golden: Golden, device: torch.device) -> None:
    layer = golden.layer()
    layer.load_state_dict(golden.source)
    layer.to(device)
    assert_same_bytes(layer.state_dict(), golden.state_dict)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_weights_beyond_fp16_lose_nothing(scale: float, dtype: torch.dtype, device: torch.device) -> None:
    """Rows are rounded to fp16 as the public package does, but only where fp16 can hold them."""
    weight = (torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    layer = nn.Linear8bitLt(64, 8, bias=False, has_fp16_weights=False).to(dtype)
    layer.load_state_dict({"weight": weight})
    layer.to(device)
    exact, _, _ = F.int8_vectorwise_quant(weight.to(device))
    apart = (layer.weight.data.int() - exact.int()).abs()
    assert apart.max() <= (1 if scale == 1 else 0)
    assert layer.weight.SCB.isfinite().all()


@pytest.mark.parametrize("start", ["fresh", "quantized", "on meta", "emptied"])
def test_loads_and_saves_the_same_bytes(golden: Golden, device: torch.device, start: str) -> None:
    layer = golden.layer("meta" if start in ("on meta", "emptied") else None)
    if start == "quantized":
        layer.to(device)
    elif start == "emptied":
        layer.to_empty(device=device)
    weight = layer.weight
    layer.load_state_dict(golden.state_dict, assign=start == "on meta")
    assert_same_bytes(layer.state_dict(), golden.state_dict)
    assert (layer.weight is weight) == (start != "on meta")
    layer.to(device)
    assert_same_bytes(layer.state_dict(), golden.state_dict)


def test_loaded_tensors_are_copies(golden: Golden) -> None:
    layer = golden.layer()
    layer.load_state_dict(golden.state_dict)
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    for tensor in golden.state_dict.values():
        tensor.zero_()
    assert_same_bytes(layer.state_dict(), before)


def test_survives_safetensors_and_torch_save(golden: Golden, tmp_path: Path) -> None:
    model = torch.nn.Sequential(golden.layer(), golden.layer())
    for layer in model:
        layer.load_state_dict(golden.state_dict)
    saved = model.state_dict()
    save_file(saved, tmp_path / "model.safetensors")  # which refuses tensors that share memory
    torch.save(saved, tmp_path / "model.pt")
    for loaded in (
        load_file(tmp_path / "model.safetensors"),
        torch.load(tmp_path / "model.pt", weights_only=True),
    ):
        assert_same_bytes(loaded, saved)
        other = torch.nn.Sequential(golden.layer(), golden.layer())
        other.load_state_dict(loaded)
        assert_same_bytes(other.state_dict(), saved)


def test_outputs_and_gradients(golden: Golden) -> None:
    layer = golden.layer()
    layer.load_state_dict(golden.state_dict)
    x = golden.extra["input"].requires_grad_()
    y = layer(x)
    y.pow(2).sum().backward()
    # The public package's int8 layer trains on the dequantized weight, without quantizing activations.
    tolerance = 1e-6 if golden.is_4bit else 3e-2
    assert relative_error(y, golden.extra["train_output"]) < tolerance
    assert relative_error(x.grad, golden.extra["train_input_grad"]) < tolerance
    assert relative_error(layer.bias.grad, golden.extra["train_bias_grad"]) < tolerance
    for key, expected in golden.extra.items():
        if key.startswith("eval_output"):
            # its path without gradients rounds to bf16 (4 bits) or fp16 (int8)
            assert relative_error(layer(x.detach().to(expected.dtype)), expected) < 1e-2, key
    if golden.is_4bit:
        dequantized = F.dequantize_4bit(layer.weight.data, layer.quant_state)
        assert torch.equal(dequantized, golden.extra["dequantized"])


def test_from_prequantized(golden_4bit: Golden, device: torch.device) -> None:
    state_dict = golden_4bit.state_dict
    stats = {key: value for key, value in state_dict.items() if key.startswith("weight.")}
    layer = golden_4bit.layer("meta")
    layer.weight = nn.Params4bit.from_prequantized(state_dict["weight"], stats, device=device)
    layer.bias = torch.nn.Parameter(state_dict["bias"])
    assert_same_bytes(layer.state_dict(), state_dict)


# -- the public package itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_4bit_weights_to_the_public_package_and_back(quant_type: str, nested: bool, storage: torch.dtype) -> None:
    theirs = public_package()
    options = {"compress_statistics": nested, "quant_type": quant_type, "quant_storage": storage}
    plain, x = torch.nn.Linear(128, 30).to(torch.bfloat16), torch.randn(5, 128, dtype=torch.bfloat16)
    layers = [package.nn.Linear4bit(128, 30, **options).to(torch.bfloat16) for package in (theirs, bnb_core)]
    for layer in layers:
        layer.load_state_dict(plain.state_dict())
        layer.to("cpu")
    their_layer, our_layer = layers
    their_state, our_state = ({k: t.clone() for k, t in layer.state_dict().items()} for layer in layers)
    # Their scales in 8 bits come from a table of 65536 bins: a few are not the nearest.
    compared = ["weight"] if nested else list(their_state)
    assert_same_bytes(*({key: state[key] for key in compared} for state in (our_state, their_state)))

    loaded = nn.Linear4bit(128, 30, **options).to(torch.bfloat16)
    loaded.load_state_dict(their_state)
    assert_same_bytes(loaded.state_dict(), their_state)
    statistics = {key: tensor for key, tensor in our_state.items() if key.startswith("weight.")}
    with torch.device("meta"):
        back = theirs.nn.Linear4bit(128, 30, **options)
    back.weight = theirs.nn.Params4bit.from_prequantized(our_state["weight"], statistics, device="cpu")
    back.bias = torch.nn.Parameter(our_state["bias"])
    assert_same_bytes(back.state_dict(), our_state)

    for ours, of_theirs in ((loaded, their_layer), (our_layer, back)):
        found = F.dequantize_4bit(ours.weight.data, ours.quant_state)
        expected = theirs.functional.dequantize_4bit(of_theirs.weight.data, of_theirs.weight.quant_state)
        assert torch.equal(found, expected)  # but for the sign of zero: their kernel reads FP4's code 8 as -0
        assert relative_error(ours(x), of_theirs(x).detach()) < 1.6e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_int8_weights_to_the_public_package_and_back(dtype: torch.dtype) -> None:
    theirs = public_package()
    plain, x = torch.nn.Linear(128, 48).to(dtype), torch.randn(5, 128).to(dtype)
    layers = [package.nn.Linear8bitLt(128, 48, has_fp16_weights=False).to(dtype) for package in (theirs, bnb_core)]
    for layer in layers:
        layer.load_state_dict(plain.state_dict())
        layer.to("cpu")
    their_layer, our_layer = layers
    their_state, our_state = ({k: t.clone() for k, t in layer.state_dict().items()} for layer in layers)
    assert_same_bytes(our_state, their_state)
    loaded, back = (p.nn.Linear8bitLt(128, 48, has_fp16_weights=False).to(dtype).to("cpu") for p in (bnb_core, theirs))
    loaded.load_state_dict(their_state)
    back.load_state_dict(our_state)
    expected = their_layer.eval()(x).detach()
    for layer in (our_layer, loaded, back.eval()):
        assert relative_error(layer(x), expected) < 1.6e-2
        assert_same_bytes(layer.state_dict(), their_state)


# -- what does not load ------------------------------------------------------------------------------------------------


@pytest.fixture
def state_4bit(device: torch.device) -> dict[str, Tensor]:
    return Golden(SMALL / "linear4bit.nf4.nested.u8.safetensors", device).state_dict


@pytest.fixture
def state_8bit(device: torch.device) -> dict[str, Tensor]:
    return Golden(SMALL / "linear8bitlt.thr6.safetensors", device).state_dict


def with_json(state: dict[str, Tensor], **changed: object) -> dict[str, Tensor]:
    key = "weight.quant_state.bitsandbytes__nf4"
    values = F.unpack_tensor_to_dict(state[key]) | changed
    return state | {key: F.pack_dict_to_tensor({name: value for name, value in values.items() if value is not ...})}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda s: s.pop("weight.absmax"), "absmax is missing"),
        (lambda s: s.pop("weight.quant_map"), "quant_map is missing"),
        (lambda s: s.pop("weight.nested_absmax"), "nested_absmax is missing"),
        (lambda s: s.pop("weight.quant_state.bitsandbytes__nf4"), "quant_type is missing"),
        (lambda s: s.update({"weight.absmax": s["weight.absmax"].float()}), "absmax is float32, expected uint8"),
        (
            lambda s: s.update({"weight.absmax": s["weight.absmax"][1:]}),
            r"absmax has shape \(127,\), expected \(128,\)",
        ),
        (lambda s: s.update({"weight.nested_quant_map": s["weight.quant_map"]}), r"nested_quant_map has shape \(16,\)"),
        (
            lambda s: s.update({"weight.quant_map": s["weight.quant_map"] * 2}),
            "quant_map does not hold the values of nf4",
        ),
        (lambda s: s.update({"weight": s["weight"][1:]}), "data has 4095 elements .* needs 4096"),
        (lambda s: s.update(with_json(s, quant_type="nf5")), "quant_type is 'nf5', expected one of nf4, fp4"),
        (lambda s: s.update(with_json(s, quant_type="fp4")), "quant_type is 'fp4', but the key says bitsandbytes__nf4"),
        (lambda s: s.update(with_json(s, blocksize="64")), "blocksize is '64', expected an integer of at least 1"),
        (lambda s: s.update(with_json(s, blocksize=128)), r"absmax has shape \(128,\), expected \(64,\)"),
        (lambda s: s.update(with_json(s, dtype="no_dtype")), "dtype is 'no_dtype', expected the name of a dtype"),
        (lambda s: s.update(with_json(s, nested_offset=...)), "nested_offset is missing"),
        (lambda s: s.update(with_json(s, shape=[128, 64])), "the checkpoint has a weight of shape .*128, 64"),
        (lambda s: s.update(with_json(s, surprise=1)), "surprise is unknown"),
        (
            lambda s: s.update({"weight.quant_state.bitsandbytes__nf4": torch.tensor([1, 2], dtype=torch.uint8)}),
            "weight.quant_state.bitsandbytes__nf4",
        ),
    ],
)
def test_a_damaged_4bit_checkpoint_is_refused(
    state_4bit: dict[str, Tensor], device: torch.device, damage: Callable[[dict[str, Tensor]], object], sentence: str
) -> None:
    layer = nn.LinearNF4(128, 64, device=device)
    damage(state_4bit)
    with pytest.raises(RuntimeError, match=sentence):
        layer.load_state_dict(state_4bit)
    assert layer.quant_state is None


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda s: s.pop("SCB"), "SCB is missing, expected torch.float32"),
        (lambda s: s.update(SCB=s["SCB"].half()), r"SCB is torch.float16 \(64,\), expected torch.float32"),
        (lambda s: s.update(SCB=s["SCB"][1:]), r"SCB is torch.float32 \(63,\), expected torch.float32 \(64,\)"),
        (lambda s: s.update(weight=s["weight"].float()), "a weight of torch.float32, expected torch.int8"),
        (lambda s: s.update(weight=s["weight"].t()), "the checkpoint has a weight of shape .*128, 64"),
        (lambda s: s.update(weight_format=torch.tensor(2, dtype=torch.uint8)), "weight_format is 2, expected 0"),
    ],
)
def test_a_damaged_int8_checkpoint_is_refused(
    state_8bit: dict[str, Tensor], device: torch.device, damage: Callable[[dict[str, Tensor]], object], sentence: str
) -> None:
    layer = nn.Linear8bitLt(128, 64, has_fp16_weights=False, device=device)
    damage(state_8bit)
    with pytest.raises(RuntimeError, match=sentence):
        layer.load_state_dict(state_8bit)


def test_int8_codes_do_not_load_into_16_bit_weights(state_8bit: dict[str, Tensor]) -> None:
    with pytest.raises(RuntimeError, match="has_fp16_weights=True"):
        nn.Linear8bitLt(128, 64).load_state_dict(state_8bit)


@pytest.mark.parametrize("make", [nn.LinearNF4, lambda *shape: nn.Linear8bitLt(*shape, has_fp16_weights=False)])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_loaded_in_inference_mode_it_has_gradients(
    make: Callable[..., torch.nn.Module], quantized: bool, assign: bool, device: torch.device
) -> None:
    state, layer = make(128, 64).to(device).state_dict(), make(128, 64)
    layer = layer.to(device) if quantized or assign else layer
    with torch.inference_mode():
        layer.load_state_dict(state, assign=assign)
    layer.to(device)(torch.randn(2, 128, device=device, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("make", [lambda *shape: nn.Linear8bitLt(*shape, has_fp16_weights=False), nn.Embedding8bit])
@pytest.mark.parametrize("assign", [False, True])
def test_int8_codes_without_their_scales_are_no_values(make: Callable[..., torch.nn.Module], assign: bool) -> None:
    codes = {key: value for key, value in make(128, 64).to("cpu").state_dict().items() if key in ("weight", "bias")}
    layer = make(128, 64)
    with pytest.raises(RuntimeError, match=r"weight: the checkpoint has a weight of torch.int8, but no statistics"):
        layer.load_state_dict(codes, assign=assign)
    assert layer.weight.is_floating_point()


@pytest.mark.parametrize("make", [nn.LinearNF4, lambda *shape: nn.Linear8bitLt(*shape, has_fp16_weights=False)])
def test_an_unquantized_weight_loads_before_the_first_move_only(
    make: Callable[..., torch.nn.Linear], device: torch.device
) -> None:
    plain = torch.nn.Linear(128, 64)
    layer = make(128, 64)
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.weight, plain.weight)
    layer.to(device)
    before = layer.state_dict()
    with pytest.raises(RuntimeError, match="weight: the layer is quantized already: load an unquantized weight before"):
        layer.load_state_dict(plain.state_dict())
    assert_same_bytes(layer.state_dict(), before)


@pytest.mark.parametrize("make", [nn.LinearNF4, lambda *shape: nn.Linear8bitLt(*shape, has_fp16_weights=False)])
def test_an_unquantized_weight_assigned_to_a_layer_on_meta_is_quantized_later(
    make: Callable[..., torch.nn.Linear], device: torch.device
) -> None:
    plain = torch.nn.Linear(128, 64)
    with torch.device("meta"):
        layer = make(128, 64)
    layer.to("meta")
    layer.load_state_dict(plain.state_dict(), assign=True)
    assert torch.equal(layer.weight, plain.weight)
    layer.to(device)
    expected = make(128, 64)
    expected.load_state_dict(plain.state_dict())
    assert_same_bytes(layer.state_dict(), expected.to(device).state_dict())


def test_strict_loading_still_reports_missing_and_unexpected(
    state_4bit: dict[str, Tensor], device: torch.device
) -> None:
    layer = nn.LinearNF4(128, 64, device=device)
    del state_4bit["bias"]
    state_4bit["weight.other"] = state_4bit["weight"]
    result = layer.load_state_dict(state_4bit, strict=False)
    assert result.missing_keys == ["bias"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"bias"[\s\S]*Unexpected key.*"weight.other"'):
        layer.load_state_dict(state_4bit)


def test_loading_into_meta_without_assign_says_so(state_4bit: dict[str, Tensor]) -> None:
    layer = nn.LinearNF4(128, 64, bias=False, device="meta")
    del state_4bit["bias"]
    with pytest.warns(UserWarning, match="weight is on meta, .* assign=True"):
        layer.load_state_dict(state_4bit)
    assert layer.weight.is_meta


def experts() -> torch.nn.Module:
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.randn(3, 3, 64))
    nn.parametrize.replace_parameter_4bit(module, "weight", compress_statistics=True)
    return module


LAYERS: dict[str, Callable[[], torch.nn.Module]] = {
    "linear 4bit": lambda: nn.LinearNF4(64, 9, bias=False, compress_statistics=False).to("cpu"),
    "linear 4bit nested": lambda: nn.LinearNF4(64, 9, bias=False, quant_storage=torch.bfloat16).to("cpu"),
    "embedding 4bit": lambda: nn.EmbeddingNF4(9, 64).to("cpu"),
    "parametrized": experts,
    "linear 8bit": lambda: nn.Linear8bitLt(64, 9, bias=False, has_fp16_weights=False).to("cpu"),
    "embedding 8bit": lambda: nn.Embedding8bit(9, 64).to("cpu"),
}
DAMAGE: dict[str, Callable[[Tensor], Tensor]] = {
    "truncated": lambda t: t[:-1],
    "longer": lambda t: torch.cat([t, t[:1]]),
    "of another dtype": lambda t: t.to(torch.float64),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_each_entry_is_checked_and_named(
    make: Callable[[], torch.nn.Module], damage: Callable[[Tensor], Tensor]
) -> None:
    model, other = (torch.nn.ModuleDict({"layers": torch.nn.ModuleList([make()])}) for _ in range(2))
    before, state = ({key: t.clone() for key, t in module.state_dict().items()} for module in (model, other))
    for key, tensor in state.items():
        if not key.endswith("_format"):
            with pytest.raises(RuntimeError, match=rf"\t{re.escape(key)}\b"):
                model.load_state_dict(state | {key: damage(tensor)})
            assert_same_bytes(model.state_dict(), before)
