"""`bnb_core.checkpoint`: bytes, format, choice of weights, errors, interruption, memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bnb_core import functional
from bnb_core.checkpoint import CheckpointError, Report, job, quantize_checkpoint, weights
from bnb_core.checkpoint.files import ShardReader
from bnb_core.checkpoint.selection import is_skipped_by, select
from bnb_core.nn import Linear4bit, Linear8bitLt

HIDDEN, INNER, VOCABULARY = 48, 101, 70  # blocks straddle rows, and the last ones are short
FORMATS = [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True), ("int8", False)]
FORMAT_IDS = ["nf4", "nf4-double", "fp4", "fp4-double", "int8"]


def llama_tensors(dtype: torch.dtype, layers: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).mul(0.05).to(dtype)

    tensors = {"model.embed_tokens.weight": random(VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = random(HIDDEN, HIDDEN)
        tensors[f"{prefix}.self_attn.q_proj.bias"] = random(HIDDEN)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = random(INNER, HIDDEN)
        tensors[f"{prefix}.mlp.up_proj.weight"] = random(INNER, HIDDEN)
        tensors[f"{prefix}.mlp.down_proj.weight"] = random(HIDDEN, INNER)
        tensors[f"{prefix}.input_layernorm.weight"] = random(HIDDEN)
    tensors["model.norm.weight"] = random(HIDDEN)
    tensors["lm_head.weight"] = random(VOCABULARY, HIDDEN)
    tensors["position_ids"] = torch.arange(7)
    tensors["empty"] = torch.empty(0, 3)
    return tensors


def save_model(
    folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1, config: dict[str, Any] | None = None
) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
    (folder / "tokenizer.json").write_text('{"a": 1}')
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {name: f"model-{1 + i % shards}-of-{shards}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in names if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0, "mark": "kept"}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", llama_tensors(torch.bfloat16))


# -- bytes -----------------------------------------------------------------------------------------------------------


def quantized_layer(
    weight: torch.Tensor, bias: torch.Tensor | None, to: str, double_quant: bool
) -> Linear4bit | Linear8bitLt:
    rows, columns = weight.shape
    layer: Linear4bit | Linear8bitLt
    if to == "int8":
        layer = Linear8bitLt(columns, rows, bias is not None, has_fp16_weights=False)
    else:
        layer = Linear4bit(columns, rows, bias is not None, compress_statistics=double_quant, quant_type=to)
    layer.weight.data = weight.clone()
    if bias is not None:
        layer.bias.data = bias.clone()
    return layer.to("cpu")


@pytest.mark.parametrize(("to", "double_quant"), FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bytes_are_those_of_the_layers(tmp_path: Path, dtype: torch.dtype, to: str, double_quant: bool) -> None:
    tensors = llama_tensors(dtype, layers=1)
    source = save_model(tmp_path / "model", tensors)
    quantize_checkpoint(source, tmp_path / "out", to=to, double_quant=double_quant)
    stored = load_all(tmp_path / "out")
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"):
        weight, bias = tensors[f"{module}.weight"], tensors.get(f"{module}.bias")
        # The public package rounds an int8 layer's weight to fp16 first; the checkpoint holds its bytes.
        direct = quantized_layer(weight.half() if to == "int8" else weight, bias, to, double_quant)
        ours = {name.removeprefix(f"{module}."): t for name, t in stored.items() if name.startswith(f"{module}.")}
        want = direct.state_dict()
        assert ours.keys() == want.keys()
        assert [key for key in want if not same(ours[key], want[key])] == []
        loaded = quantized_layer(torch.zeros_like(weight), bias, to, double_quant)
        loaded.load_state_dict(ours)
        x = torch.randn(3, weight.shape[1], dtype=dtype)
        assert torch.equal(loaded(x), direct(x))


@pytest.mark.parametrize(("to", "double_quant"), FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("transposed", [False, True])
def test_pieces_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, double_quant: bool, transposed: bool
) -> None:
    config = {"model_type": "gpt2" if transposed else "llama"}
    tensors = {"h.0.mlp.c_fc.weight": torch.randn(90, 61), "h.0.mlp.c_proj.weight": torch.randn(64, 128)}
    source = save_model(tmp_path / "model", tensors, config=config)
    whole = quantize_checkpoint(source, tmp_path / "whole", to=to, double_quant=double_quant)
    monkeypatch.setattr(weights, "_PIECE", 128)
    pieces = quantize_checkpoint(source, tmp_path / "pieces", to=to, double_quant=double_quant)
    a, b = load_all(tmp_path / "whole"), load_all(tmp_path / "pieces")
    assert a.keys() == b.keys()
    assert all(same(a[name], b[name]) for name in a)
    for one, other in zip(whole.weights, pieces.weights, strict=True):
        assert one.relative_error == pytest.approx(other.relative_error, rel=1e-5)


def test_error_is_that_of_the_stored_weight(tmp_path: Path) -> None:
    weight = llama_tensors(torch.float32)["model.layers.0.mlp.up_proj.weight"]
    source = save_model(tmp_path / "model", {"layers.0.up_proj.weight": weight})
    (found,) = quantize_checkpoint(source, tmp_path / "out", double_quant=True).weights
    difference = weight - functional.dequantize_4bit(*functional.quantize_nf4(weight, compress_statistics=True))
    assert found.relative_error == pytest.approx(float(difference.norm() / weight.norm()), rel=1e-5)
    assert found.mean_abs_error == pytest.approx(float(difference.abs().mean()), rel=1e-5)
    assert found.shape == tuple(weight.shape)


# -- format ----------------------------------------------------------------------------------------------------------


def test_files_are_whole_aligned_and_marked(tmp_path: Path) -> None:
    tensors = llama_tensors(torch.bfloat16)
    tensors["small.float"] = torch.randn(4).to(torch.float8_e4m3fn)
    source = save_model(tmp_path / "model", tensors, shards=2)
    report = quantize_checkpoint(source, tmp_path / "out", double_quant=True)
    out = tmp_path / "out"
    assert not list(tmp_path.glob("*.partial*"))
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
        "model.safetensors.index.json",
        "quantization_report.json",
        "tokenizer.json",
    ]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    total = 0
    for file in out.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert {n for n, f in index["weight_map"].items() if f == file.name} == set(opened.keys())
        with ShardReader(file) as reader:
            end = 0
            for info in reader.tensors.values():
                assert info.begin == end, "a hole"
                assert info.numel == 0 or info.begin % (info.nbytes // info.numel) == 0
                end = info.end
            total += end
    assert index["metadata"] == {"total_size": total, "mark": "kept"}
    stored = load_all(out)
    for name in ("position_ids", "empty", "lm_head.weight", "model.norm.weight"):
        assert same(stored[name], tensors[name])
    assert same(stored["small.float"].view(torch.uint8), tensors["small.float"].view(torch.uint8))
    assert report.bytes_after == sum(file.stat().st_size for file in out.glob("*.safetensors"))
    assert report.bytes_before == sum(file.stat().st_size for file in source.glob("*.safetensors"))


@pytest.mark.parametrize(("to", "double_quant"), FORMATS, ids=FORMAT_IDS)
def test_config_is_that_of_a_quantized_checkpoint(model: Path, tmp_path: Path, to: str, double_quant: bool) -> None:
    quantize_checkpoint(model, tmp_path / "out", to=to, double_quant=double_quant, skip=["o_proj"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    found = config["quantization_config"]
    assert config["model_type"] == "llama"
    assert config["torch_dtype"] == "bfloat16"
    assert found["quant_method"] == "bitsandbytes"
    assert (found["load_in_8bit"], found["load_in_4bit"]) == (to == "int8", to != "int8")
    if to != "int8":
        assert (found["bnb_4bit_quant_type"], found["bnb_4bit_use_double_quant"]) == (to, double_quant)
        assert (found["bnb_4bit_compute_dtype"], found["bnb_4bit_quant_storage"]) == ("bfloat16", "uint8")
    skipped = found["llm_int8_skip_modules"]
    assert {"lm_head", "model.embed_tokens", "model.layers.1.self_attn.o_proj"} <= set(skipped)


def test_report_stands_beside_the_weights(model: Path, tmp_path: Path) -> None:
    report = quantize_checkpoint(model, tmp_path / "out", to="int8")
    text = (tmp_path / "out" / "quantization_report.json").read_text()
    assert str(tmp_path) not in text
    found = json.loads(text)
    assert len(found["weights"]) == len(report.weights) == 14
    assert found["kept"] == {"lm_head.weight": "output head", "model.embed_tokens.weight": "embedding"}
    worst = report.worst(14)
    assert worst == sorted(worst, key=lambda w: -(w.relative_error or 0))


# -- choice ----------------------------------------------------------------------------------------------------------


def choose(names: list[str], skip: list[str] | None = None, **config: Any) -> set[str]:
    """The modules that are quantized, after checking that transformers would agree for every one."""
    shapes = dict.fromkeys(names, (8, 8))
    selection = select(shapes, config, skip or [])
    quantized = {name.removesuffix(".weight") for name in selection.quantized}
    for name in names:
        module = name.removesuffix(".weight")
        assert is_skipped_by(module, selection.skip_modules) == (module not in quantized)
    return quantized


def test_embeddings_heads_and_routers_stay() -> None:
    kept = [
        *("transformer.wte.weight", "transformer.wpe.weight", "shared.weight", "model.embed_tokens.weight"),
        *("bert.embeddings.word_embeddings.weight", "lm_head.weight", "score.weight", "cls.predictions.decoder.weight"),
        *("model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.3.up_proj.weight"),
        *("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",),
    ]
    taken = ["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.shared_experts.up_proj.weight"]
    assert choose(kept + taken) == {name.removesuffix(".weight") for name in taken}


def test_a_name_that_a_skip_entry_also_matches_stays() -> None:
    assert choose(["fc.weight", "layers.0.fc.weight", "layers.0.up.weight"], skip=["^fc$"]) == {"layers.0.up"}
    assert choose(["a.1.weight", "a.11.weight"], skip=[r"^a\.1$"]) == {"a.11"}


def test_multihead_attention_keeps_its_projection() -> None:
    shapes = {"attn.in_proj_weight": (24, 8), "attn.out_proj.weight": (8, 8), "mlp.out_proj.weight": (8, 8)}
    assert set(select(shapes, {}).quantized) == {"mlp.out_proj.weight"}


def test_experts_are_one_entry_per_layer_and_3d_ones_are_counted() -> None:
    shapes: dict[str, tuple[int, ...]] = {f"m.0.experts.{i}.up.weight": (8, 8) for i in range(50)}
    selection = select(shapes | {"m.1.experts.gate_up_proj": (4, 8, 8), "m.0.q.weight": (8, 8)}, {})
    assert "m.0.experts" in selection.skip_modules
    assert sum("experts" in pattern for pattern in selection.skip_modules) == 1
    assert selection.left == 1


def test_tied_heads_are_named_though_they_are_not_in_the_file() -> None:
    shapes = {"bert.embeddings.word_embeddings.weight": (8, 8), "bert.encoder.layer.0.output.dense.weight": (8, 8)}
    assert is_skipped_by("cls.predictions.decoder", select(shapes, {}).skip_modules)
    assert is_skipped_by("lm_head", select(shapes, {"tie_word_embeddings": False}).skip_modules)


def test_conv1d_weights_are_turned(tmp_path: Path) -> None:
    weight = torch.randn(32, 96)
    tensors = {"h.0.attn.c_attn.weight": weight, "h.0.attn.bias_table.weight": torch.randn(4, 6)}
    source = save_model(tmp_path / "model", tensors, config={"model_type": "gpt2"})
    report = quantize_checkpoint(source, tmp_path / "out")
    packed, state = functional.quantize_nf4(weight.t().contiguous())
    stored = load_all(tmp_path / "out")
    assert same(stored["h.0.attn.c_attn.weight"], packed)
    assert same(stored["h.0.attn.c_attn.weight.absmax"], state.absmax)
    assert {weight.name: weight.shape for weight in report.weights} == {
        "h.0.attn.c_attn.weight": (96, 32),
        "h.0.attn.bias_table.weight": (4, 6),
    }
    assert "transposed" in report.notes[0]


# -- errors ----------------------------------------------------------------------------------------------------------


def replace_tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: tensor}, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def only(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (shutil.rmtree, "is not a folder"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
        (spoil("config.json", b"{"), "is not valid JSON"),
        (spoil("config.json", b"[]"), "holds a JSON list, expected an object"),
        (spoil("config.json", b'{"quantization_config": {"quant_method": "gptq"}}'), "quantized already, by gptq"),
        (spoil("config.json", b'{"quantization_config": "x"}'), "quantized already, by an unknown method"),
        (lambda f: replace_tensor(f, Q_PROJ, torch.zeros(9, 2).double()), "dtype F64, which is not supported: convert"),
        (only("pytorch_model.bin"), "files of .bin: convert it first"),
        (only("other.safetensors"), "files of .safetensors: name it so, or add the index"),
        (truncate, r"is truncated: it has [\d,]+ bytes, its header needs [\d,]+"),
        (spoil("model.safetensors", b""), "is truncated or no safetensors file: it has 0 bytes"),
        (spoil("model.safetensors", b"\xff" * 50), "is truncated or no safetensors file"),
        (spoil("model.safetensors", b"\x02" + b"\0" * 7 + b"{["), "broken safetensors header"),
        (spoil("model.safetensors", b"\x09" + b"\0" * 7 + b'{"a": 1} '), "broken safetensors header"),
        (lambda f: replace_tensor(f, Q_PROJ, torch.zeros(9, 1, dtype=torch.uint8)), "has dtype U8, .*already"),
        (lambda f: replace_tensor(f, Q_PROJ, torch.zeros(9, 1, dtype=torch.int8)), "has dtype I8, expected F32, F16"),
    ],
)
def test_wrong_input_is_a_sentence(
    model: Path, tmp_path: Path, change: Callable[[Path], object], sentence: str
) -> None:
    change(model)
    with pytest.raises(CheckpointError, match=sentence):
        quantize_checkpoint(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) in (["model"], [])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"to": "nf3"}, "the format is 'nf3', expected one of nf4, fp4, int8"),
        ({"blocksize": 100}, "the block size is 100, expected one of 16, 32"),
        ({"to": "int8", "double_quant": True}, "int8 has one scale a row"),
        ({"skip": "lm_head"}, "skip is the string 'lm_head', expected a list"),
        ({"skip": ["("]}, "is no regular expression"),
        ({"skip": ["."]}, "has no weight to quantize"),
    ],
)
def test_wrong_options_are_a_sentence(model: Path, tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        quantize_checkpoint(model, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (("x.weight", "model-1-of-2.safetensors"), "places x.weight in model-1-of-2.safetensors, which does not hold"),
        (("x.weight", "model-9.safetensors"), "model-9.safetensors does not exist"),
        (("x.weight", "../secret.safetensors"), "names a file outside its folder"),
    ],
)
def test_wrong_index_is_a_sentence(tmp_path: Path, entry: tuple[str, str], sentence: str) -> None:
    source = save_model(tmp_path / "model", llama_tensors(torch.float16), shards=2)
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][entry[0]] = entry[1]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=sentence):
        quantize_checkpoint(source, tmp_path / "out")


def test_place_of_the_output(model: Path, tmp_path: Path) -> None:
    for out in (model, model / "inside", tmp_path):
        with pytest.raises(CheckpointError, match="must not lie within each other"):
            quantize_checkpoint(model, out, force=True)
    with pytest.raises(CheckpointError, match="for the output does not exist"):
        quantize_checkpoint(model, tmp_path / "no" / "out")
    out = tmp_path / "out"
    out.mkdir()
    quantize_checkpoint(model, out, to="int8")  # an empty folder is as good as none
    with pytest.raises(CheckpointError, match="exists already"):
        quantize_checkpoint(model, out)
    quantize_checkpoint(model, out, force=True)
    assert load_all(out)[Q_PROJ].dtype == torch.uint8
    other = tmp_path / "photos"
    other.mkdir()
    (other / "me.jpg").touch()
    with pytest.raises(CheckpointError, match="--force replaces only what bnb-core quantize wrote"):
        quantize_checkpoint(model, other, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "photos"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda out: (out / "quantization_report.json").unlink(), "holds no quantization_report.json"),
        (spoil("config.json", b'{"model_type": "llama"}'), "has no quantization_config"),
        (spoil("config.json", b"{"), "holds no readable config.json"),
        (lambda out: (out / "runs").mkdir(), "holds the folder runs"),
    ],
)
@pytest.mark.parametrize("place", ["out", "out.partial.old"])
def test_force_replaces_only_what_a_run_wrote(
    model: Path, tmp_path: Path, change: Callable[[Path], object], sentence: str, place: str
) -> None:
    quantize_checkpoint(model, tmp_path / "first", to="int8")
    (tmp_path / "first").rename(tmp_path / place)
    change(tmp_path / place)
    before = sorted(path.name for path in (tmp_path / place).iterdir())
    with pytest.raises(CheckpointError, match=sentence):
        quantize_checkpoint(model, tmp_path / "out", force=True)
    assert sorted(path.name for path in (tmp_path / place).iterdir()) == before


def test_an_output_that_appears_meanwhile_stays(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def appear(name: str, nbytes: int) -> None:
        out.mkdir(exist_ok=True)
        (out / "letter.txt").write_text("dear")

    with pytest.raises(CheckpointError, match="exists already"):
        quantize_checkpoint(model, out, progress=appear)
    assert (out / "letter.txt").read_text() == "dear"
    shutil.rmtree(out)
    assert quantize_checkpoint(model, out).resumed == ["model.safetensors"]


def test_null_is_no_quantization(tmp_path: Path) -> None:
    source = save_model(tmp_path / "model", llama_tensors(torch.float16), config={"quantization_config": None})
    assert quantize_checkpoint(source, tmp_path / "out").weights


def test_files_of_the_model_do_not_meet_the_journal(model: Path, tmp_path: Path) -> None:
    (model / "journal.json").write_text("its own")
    (model / job.JOURNAL).write_text("{}")
    quantize_checkpoint(model, tmp_path / "out")
    assert (tmp_path / "out" / "journal.json").read_text() == "its own"
    assert not (tmp_path / "out" / job.JOURNAL).exists()


@pytest.mark.parametrize("to", ["nf4", "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, to: str, value: float) -> None:
    tensors = llama_tensors(torch.float32)
    tensors[Q_PROJ][3, 4] = value
    report = quantize_checkpoint(save_model(tmp_path / "model", tensors), tmp_path / "out", to=to)
    assert report.worst(1)[0].name == Q_PROJ
    assert report.worst(1)[0].relative_error is None
    assert any("not finite" in note and Q_PROJ in note for note in report.notes)
    assert sum(weight.relative_error is None for weight in report.weights) == 1


def test_what_is_odd_is_noted(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").touch()
    (model / "original").mkdir()
    report = quantize_checkpoint(model, tmp_path / "out", skip=["nothing_like_it"])
    assert "--skip nothing_like_it matched no weight" in report.notes
    assert "not copied: original/, pytorch_model.bin" in report.notes


# -- interruption ----------------------------------------------------------------------------------------------------


IN_THE_LAST_OF_3 = "model.layers.0.self_attn.k_proj.weight"


def interrupted(source: Path, out: Path, at: str, **options: Any) -> None:
    def stop(name: str, nbytes: int) -> None:
        if name == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, out, progress=stop, **options)


def identical(a: Path, b: Path) -> bool:
    names = sorted(path.name for path in a.iterdir())
    return names == sorted(path.name for path in b.iterdir()) and all(
        (a / name).read_bytes() == (b / name).read_bytes() for name in names
    )


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    source = save_model(tmp_path / "model", llama_tensors(torch.bfloat16), shards=3)
    quantize_checkpoint(source, tmp_path / "straight", double_quant=True)
    out = tmp_path / "out"
    interrupted(source, out, IN_THE_LAST_OF_3, double_quant=True)
    assert not out.exists()
    done: dict[str, int] = {}
    report: Report = quantize_checkpoint(source, out, double_quant=True, progress=done.__setitem__)
    assert report.resumed == ["model-1-of-3.safetensors", "model-2-of-3.safetensors"]
    assert done.keys() == llama_tensors(torch.bfloat16).keys()
    assert identical(out, tmp_path / "straight")
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("change", ["settings", "input", "journal", "shard"])
def test_a_changed_run_starts_anew(tmp_path: Path, change: str) -> None:
    source = save_model(tmp_path / "model", llama_tensors(torch.bfloat16), shards=3)
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    interrupted(source, out, IN_THE_LAST_OF_3)
    first = "model-1-of-3.safetensors"
    if change == "input":
        os.utime(source / first, ns=(1, 1))
    elif change == "journal":
        (partial / job.JOURNAL).write_text("{")
    elif change == "shard":
        (partial / first).write_bytes(b"short")
    report = quantize_checkpoint(source, out, to="fp4" if change == "settings" else "nf4")
    assert first not in report.resumed
    quantize_checkpoint(source, tmp_path / "straight", to="fp4" if change == "settings" else "nf4")
    assert identical(out, tmp_path / "straight")


def test_a_folder_of_another_origin_is_not_touched(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="is not of an interrupted run"):
        quantize_checkpoint(model, tmp_path / "out")
    assert (tmp_path / "out.partial" / "letter.txt").read_text() == "dear"


def test_replacing_survives_an_interruption(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize_checkpoint(model, out, to="int8")
    interrupted(model, out, "position_ids", force=True)
    assert load_all(out)[Q_PROJ].dtype == torch.int8


@pytest.mark.parametrize("force", [False, True])
def test_an_interruption_before_the_last_rename(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    out = tmp_path / "out"
    if force:
        quantize_checkpoint(model, out, to="int8")

    def stop(folder: Path, target: Path) -> None:
        if force:  # as far as it goes without the new name
            target.rename(folder.with_name(folder.name + ".old"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "_put_in_place", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize_checkpoint(model, out, force=force)
    assert not out.exists()
    assert not (tmp_path / "out.partial" / job.JOURNAL).exists()
    quantize_checkpoint(model, out)
    assert load_all(out)[Q_PROJ].dtype == torch.uint8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_an_interruption_before_the_first_journal(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / f"{job.JOURNAL}.new").write_text("{")
    quantize_checkpoint(model, tmp_path / "out")
    assert not (tmp_path / "out" / f"{job.JOURNAL}.new").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks there")
def test_two_runs_to_the_same_place(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused = []

    def second(name: str, nbytes: int) -> None:
        if not refused:
            with pytest.raises(CheckpointError, match="another run is writing") as error:
                quantize_checkpoint(model, out, to="int8")
            refused.append(error)

    quantize_checkpoint(model, out, progress=second)
    assert refused
    assert load_all(out)[Q_PROJ].dtype == torch.uint8
    assert load_all(out).keys() >= {f"{Q_PROJ}.absmax"}


# -- memory ----------------------------------------------------------------------------------------------------------

MEMORY = """
import sys, torch
from bnb_core.checkpoint import quantize_checkpoint

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

torch.set_num_threads(1)
source, out, to, double = sys.argv[1:]
print(peak())
quantize_checkpoint(source, out, to=to, double_quant=bool(int(double)))
print(peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc for the peak of the resident memory")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    weight = torch.randn(1024, 2048).to(torch.bfloat16)

    def growth(count: int) -> int:
        tensors = {f"layers.{i}.up_proj.weight": weight.roll(i) for i in range(count)}
        source = save_model(tmp_path / f"model{count}", tensors)
        command = [sys.executable, "-c", MEMORY, str(source), str(tmp_path / f"out{count}"), "nf4", "1"]
        # glibc then returns what is freed at once, so that the peak is of what was in use.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        before, after = map(int, done.stdout.split())
        return after - before

    one, many = growth(1), growth(12)
    assert many - one < 2 * weight.nbytes, f"{(many - one) / 2**20:.0f} MB more for 11 more tensors"


# -- transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "double_quant"), FORMATS, ids=FORMAT_IDS)
def test_transformers_loads_it_as_if_quantized_there(tmp_path: Path, to: str, double_quant: bool) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=128, num_key_value_heads=2, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    quantize_checkpoint(tmp_path / "model", tmp_path / "out", to=to, double_quant=double_quant)
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    entry = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=transformers.BitsAndBytesConfig(**entry)
    )
    kinds = [type(module).__name__ for module in ours.modules()]
    assert kinds == [type(module).__name__ for module in theirs.modules()]
    assert kinds.count("Linear8bitLt" if to == "int8" else "Linear4bit") == 14
    ids = torch.arange(32)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=0.02)
