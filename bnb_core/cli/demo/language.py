"""How well and how fast a language model reads and writes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .needs import Missing
from .plan import Plan

PROMPT = "Explain in two sentences what a dictionary is in Python."
Advance = Callable[[int], None]


def english_text() -> str:
    """The language reference that the standard library brings for `help()`, in alphabetical order of its topics.

    Raises:
        Missing: this Python was installed without it.
    """
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise Missing("the demo reads the standard library's pydoc_data.topics, which this Python lacks") from error
    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


def tokens_of_text(tokenizer: Any, plan: Plan) -> Tensor:
    """As many tokens `[n]` of the text as the plan reads."""
    count = plan.context + plan.scored_tokens
    text = english_text()[: 16 * count]  # a token is far shorter than 16 characters
    ids: Tensor = tokenizer(text, return_tensors="pt").input_ids[0, :count]
    if len(ids) < count:
        raise Missing(f"the text has {len(ids)} tokens, the demo reads {count}")
    return ids


def windows(ids: Tensor, plan: Plan) -> Tensor:
    """Overlapping windows `[count, window]` of the tokens `[n]`.

    Each starts `stride` tokens after the one before it, and only its last `stride` tokens are scored: every token of
    the text past the first `context` is scored once, with at least `context` tokens before it.
    """
    return ids.unfold(0, plan.window, plan.stride)


@torch.inference_mode()
def perplexity(model: nn.Module, ids: Tensor, plan: Plan, advance: Advance) -> tuple[float, float]:
    """Perplexity of the scored tokens, and tokens read per second (those read twice counted twice)."""
    total, seconds = 0.0, 0.0
    for batch in windows(ids, plan).split(plan.batch):
        start = time.perf_counter()
        logits = model(input_ids=batch, use_cache=False, logits_to_keep=plan.stride + 1).logits[:, :-1]
        loss = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch[:, -plan.stride :].flatten(), reduction="sum"
        )
        total += loss.item()
        seconds += time.perf_counter() - start
        advance(len(batch))
    return math.exp(total / plan.scored_tokens), windows(ids, plan).numel() / seconds


def chat_prompt(tokenizer: Any, text: str = PROMPT) -> Tensor:
    """The tokens `[1, n]` of a question in the model's chat format."""
    question = [{"role": "user", "content": text}]
    chat = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    ids: Tensor = tokenizer(chat, return_tensors="pt", add_special_tokens=False).input_ids
    return ids


@torch.inference_mode()
def write(model: nn.Module, prompt: Tensor, stop: int, count: int, advance: Advance) -> tuple[list[int], float]:
    """The most likely continuation of the prompt `[1, n]`, at most `count` tokens of it, and tokens per second.

    The first token comes with reading the prompt and is not timed; each other one is a step of one token.
    """
    step = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    written = [int(step.logits[0, -1].argmax())]
    start = time.perf_counter()
    while len(written) < count and written[-1] != stop:
        last = torch.tensor([[written[-1]]], device=prompt.device)
        step = model(input_ids=last, past_key_values=step.past_key_values, use_cache=True)
        written.append(int(step.logits[0, -1].argmax()))
        advance(1)
    seconds = time.perf_counter() - start
    return written, (len(written) - 1) / seconds if len(written) > 1 else math.nan
