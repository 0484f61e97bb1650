"""The language model in each format: made, loaded, measured."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import language, model
from .calls import Calls
from .layers import held_bytes, linears
from .plan import Plan, Variant
from .screen import advancing

FLOAT = "float"


@dataclass
class Measured:
    """One row of the demo's first table. Bytes are what tensors hold; speeds are tokens per second."""

    key: str
    title: str
    disk_bytes: int
    memory_bytes: int
    linear_bytes: int
    perplexity: float
    read_speed: float
    write_speed: float
    sample: str
    seconds: float
    kernels: Calls = field(default_factory=dict)
    """Op to kernel to the number of calls, from quantizing on."""


@dataclass(frozen=True)
class Reader:
    """What every variant reads and answers, and on which device."""

    tokenizer: Any
    text: Tensor
    prompt: Tensor
    plan: Plan
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, folder: Path, plan: Plan, dtype: torch.dtype, device: torch.device) -> Reader:
        tokenizer = model.load_tokenizer(folder)
        text = language.tokens_of_text(tokenizer, plan).to(device)
        return cls(tokenizer, text, language.chat_prompt(tokenizer).to(device), plan, dtype, device)


def measure_float(folder: Path, reader: Reader) -> Measured:
    lm = model.load_float(folder, reader.dtype, reader.device)
    return _measure(lm, FLOAT, str(reader.dtype).removeprefix("torch."), folder, reader)


def measure_quantized(folder: Path, quantized: Path, variant: Variant, reader: Reader) -> Measured:
    lm = model.load_quantized(folder, quantized, variant, reader.dtype, reader.device)
    return _measure(lm, variant.key, variant.title, quantized, reader)


def _measure(lm: nn.Module, key: str, title: str, files: Path, reader: Reader) -> Measured:
    plan, start = reader.plan, time.perf_counter()
    with advancing(f"{title}: reading", len(language.windows(reader.text, plan))) as advance:
        value, read = language.perplexity(lm, reader.text, plan, advance)
    with advancing(f"{title}: writing", plan.new_tokens - 1) as advance:
        words, write = language.write(lm, reader.prompt, reader.tokenizer.eos_token_id, plan.new_tokens, advance)
    return Measured(
        key,
        title,
        disk_bytes=model.weight_bytes(files),
        memory_bytes=held_bytes(lm),
        linear_bytes=held_bytes(*linears(lm)),
        perplexity=value,
        read_speed=read,
        write_speed=write,
        sample=reader.tokenizer.decode(words, skip_special_tokens=True).strip(),
        seconds=time.perf_counter() - start,
    )
