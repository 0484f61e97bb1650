"""transformers, accelerate and peft with the drop-in: a small model made on the spot goes through what users do."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import peers
import pytest
import torch
from torch import Tensor

from bnb_core import nn as layers
from bnb_core.checkpoint import quantize_checkpoint

peers.integration("transformers", "accelerate", "peft")
import peft  # noqa: E402
import transformers  # noqa: E402

# Layers that are quantized: q, k, v, o, gate, up, down of two blocks.
QUANTIZED = 14

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
CONFIGS: dict[str, dict[str, Any]] = {
    "nf4": NF4,
    "nf4-double": NF4 | {"bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True},
    "nf4-bf16-storage": NF4 | {"bnb_4bit_quant_storage": torch.bfloat16},
    "int8": {"load_in_8bit": True},
    "int8-without-outliers": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
}
each_config = pytest.mark.parametrize("config", CONFIGS)


@pytest.fixture(autouse=True, scope="module")
def bnb() -> ModuleType:
    return peers.drop_in()


@pytest.fixture(scope="module")
def shape() -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaConfig(vocab_size=128, num_key_value_heads=2, max_position_embeddings=64, **sizes)


@pytest.fixture(scope="module")
def model_dir(shape: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(path)
    return path


def load(path: Path, config: str | None = None, **options: Any) -> Any:
    if config is not None:
        options |= {"quantization_config": transformers.BitsAndBytesConfig(**CONFIGS[config])}
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, **options)


IDS = torch.randint(128, (4, 16), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS).logits


def close(got: Tensor, want: Tensor, part: float) -> None:
    """Apart by less than a part of the size."""
    assert (got - want).norm() < part * want.norm()


# -- loading and saving ------------------------------------------------------------------------------------------------


@each_config
def test_load_quantized_save_and_load_again(config: str, model_dir: Path, tmp_path: Path) -> None:
    model = load(model_dir, config)
    kind = layers.Linear8bitLt if "int8" in config else layers.Linear4bit
    assert sum(isinstance(module, kind) for module in model.modules()) == QUANTIZED
    want = logits(model)
    close(want, logits(load(model_dir)), 0.3 if config == "fp4" else 0.2)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), want)
    dequantized = model.dequantize(dtype=torch.bfloat16)
    assert not any(isinstance(module, kind) for module in dequantized.modules())
    close(logits(dequantized), want, 0.05)


@pytest.mark.parametrize("to", ["nf4", "fp4", "int8"])
def test_a_model_quantized_by_the_command_loads(to: str, model_dir: Path, tmp_path: Path) -> None:
    quantize_checkpoint(model_dir, tmp_path / "out", to=to)
    entry = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    there = load(model_dir, quantization_config=transformers.BitsAndBytesConfig(**entry))
    assert torch.equal(logits(load(tmp_path / "out")), logits(there))


def test_generate(model_dir: Path) -> None:
    model = load(model_dir, "nf4")
    ids = model.generate(IDS[:1], max_new_tokens=5, do_sample=False)
    assert ids.shape[1] > IDS.shape[1]


# -- LoRA --------------------------------------------------------------------------------------------------------------


def with_adapter(model: Any) -> Any:
    prepared = peft.prepare_model_for_kbit_training(model)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(prepared, config)


def trained(model: Any, bnb: ModuleType, steps: int) -> list[float]:
    """The loss at each step of paged 8-bit AdamW on the adapter."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = bnb.optim.PagedAdamW8bit(parameters, lr=5e-3, min_8bit_size=256)
    assert any(p.numel() >= 256 for p in parameters)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.filterwarnings("ignore:Merge lora", "ignore:Unmerge lora", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:is_paged is True", "ignore:Linear4bit got an input in float32")
@pytest.mark.parametrize("config", ["nf4", "nf4-double", "int8"])
def test_adapter_trains_saves_and_merges(config: str, bnb: ModuleType, model_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = with_adapter(load(model_dir, config))
    base = {k: v.clone() for k, v in model.state_dict().items() if "lora" not in k}
    losses = trained(model, bnb, 8)
    assert losses[-1] < losses[0] - 0.2
    for key, value in model.state_dict().items():
        assert "lora" in key or torch.equal(value, base[key]), key
    want = logits(model)
    model.save_pretrained(tmp_path)
    fresh = peft.prepare_model_for_kbit_training(load(model_dir, config))
    assert torch.equal(logits(peft.PeftModel.from_pretrained(fresh, tmp_path).eval()), want)
    model.merge_adapter()
    close(logits(model), want, 0.2)
    model.unmerge_adapter()
    close(logits(model), want, 0.2)
    merged = model.merge_and_unload()
    assert sum(isinstance(m, (layers.Linear4bit, layers.Linear8bitLt)) for m in merged.modules()) == QUANTIZED
    close(logits(merged), want, 0.2)


ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("LoraConfig", {"r": 4, "use_dora": True, "init_lora_weights": False}),
    "olora": ("LoraConfig", {"r": 4, "init_lora_weights": "olora"}),
    "ia3": ("IA3Config", {"feedforward_modules": [], "init_ia3_weights": False}),
    "adalora": ("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 10, "init_lora_weights": False}),
    "randlora": ("RandLoraConfig", {"r": 4, "init_weights": False}),
    "road": ("RoadConfig", {"group_size": 8, "init_weights": False}),
    "vera": ("VeraConfig", {"r": 4, "init_weights": False}),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Linear4bit got an input in float32")
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("config", ["nf4-double", "int8"])
def test_other_adapters_train(config: str, adapter: str, bnb: ModuleType, model_dir: Path) -> None:
    torch.manual_seed(1)
    name, options = ADAPTERS[adapter]
    made = getattr(peft, name)(target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(peft.prepare_model_for_kbit_training(load(model_dir, config)), made)
    trainable = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trainable]
    model(IDS, labels=IDS).loss.backward()
    bnb.optim.AdamW8bit(trainable, lr=1e-2, min_8bit_size=16).step()
    assert any(not torch.equal(p, old) for p, old in zip(trainable, before, strict=True))
    adapted = logits(model)
    with model.disable_adapter():
        assert not torch.equal(logits(model), adapted)


# -- Trainer -----------------------------------------------------------------------------------------------------------


class Sentences(torch.utils.data.Dataset):  # type: ignore[type-arg]  # torch's is generic for checkers only
    def __len__(self) -> int:
        return len(IDS)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": IDS[i], "labels": IDS[i]}


def trainer(shape: Any, path: Path, optim: str) -> Any:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(shape)
    options = {"max_steps": 3, "save_steps": 2, "learning_rate": 1e-3, "report_to": [], "disable_tqdm": True}
    arguments = transformers.TrainingArguments(
        path, optim=optim, per_device_train_batch_size=4, use_cpu=True, **options
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=Sentences())


def states(made: Any) -> dict[str, dict[str, Any]]:
    inner = getattr(made.optimizer, "optimizer", made.optimizer)
    return {name: inner.state[p] for name, p in made.model.named_parameters()}


OPTIMIZERS = [
    *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"),
    *("lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
    *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
]


@pytest.mark.filterwarnings("ignore:is_paged is True")
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_trainer(optim: str, shape: Any, tmp_path: Path) -> None:
    made = trainer(shape, tmp_path, optim)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    made.train()
    eight = "8bit" in optim
    for name, state in states(made).items():
        large = before[name].numel() >= 4096 and "embed_tokens" not in name  # the Trainer keeps embeddings in 32 bits
        assert state["state1"].dtype == (torch.uint8 if eight and large else torch.float32), name
    assert any(not torch.equal(p, before[name]) for name, p in made.model.named_parameters())


def test_trainer_goes_on_from_a_checkpoint(shape: Any, tmp_path: Path) -> None:
    whole = trainer(shape, tmp_path, "adamw_bnb_8bit")
    whole.train()
    resumed = trainer(shape, tmp_path, "adamw_bnb_8bit")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name


# -- accelerate --------------------------------------------------------------------------------------------------------


def test_accelerate_prepares_quantized_models(model_dir: Path) -> None:
    import accelerate
    from accelerate.utils.imports import is_4bit_bnb_available, is_8bit_bnb_available, is_bnb_available

    assert is_bnb_available() and is_4bit_bnb_available() and is_8bit_bnb_available()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = with_adapter(load(model_dir, "nf4"))
    want = logits(model)
    prepared = accelerate.Accelerator(cpu=True).prepare(model)
    assert torch.equal(logits(prepared), want)


@pytest.mark.parametrize("to", ["memory", "disk"])
@pytest.mark.parametrize("config", ["nf4", "nf4-double", "fp4"])
def test_accelerate_offloads_4_bit_weights(config: str, to: str, model_dir: Path, tmp_path: Path) -> None:
    """Weights wait on meta, and come back for the time of a layer's forward pass."""
    import accelerate

    model = load(model_dir, config)
    want = logits(model)
    if to == "memory":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    assert model.model.layers[0].self_attn.q_proj.weight.is_meta
    for _ in range(2):
        assert torch.equal(logits(model), want)
    assert model.model.layers[0].self_attn.q_proj.weight.is_meta
