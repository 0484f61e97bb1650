"""Layers with quantized weights, which are bnb_core's own classes."""

from __future__ import annotations

from typing import Any

from bnb_core import QuantState
from bnb_core.nn import (
    Embedding,
    Embedding4bit,
    Embedding8bit,
    EmbeddingFP4,
    EmbeddingNF4,
    Int8Params,
    Linear4bit,
    Linear8bitLt,
    LinearFP4,
    LinearNF4,
    OutlierAwareLinear,
    Params4bit,
    StableEmbedding,
)
from bnb_core.optim import GlobalOptimManager

from ..functional import has_avx512bf16
from ..utils import INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING, OutlierTracer

__all__ = [
    "Embedding",
    "Embedding4bit",
    "Embedding8bit",
    "EmbeddingFP4",
    "EmbeddingNF4",
    "GlobalOptimManager",
    "INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING",
    "Int8Params",
    "Linear4bit",
    "Linear8bitLt",
    "LinearFP4",
    "LinearNF4",
    "OutlierAwareLinear",
    "OutlierTracer",
    "Params4bit",
    "QuantState",
    "StableEmbedding",
    "fix_4bit_weight_quant_state_from_module",
    "has_avx512bf16",
    "maybe_rearrange_weight",
]


def fix_4bit_weight_quant_state_from_module(module: Embedding4bit | Linear4bit) -> None:
    """Nothing to do: a layer reads the state of its weight. Raises RuntimeError where that has none."""
    if getattr(module.weight, "quant_state", None) is None:
        raise RuntimeError("the weight has no quant_state: move the layer to its device once, or assign a Params4bit")


def maybe_rearrange_weight(state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """A hook before loading that takes `weight_format` out. Raises ValueError for another layout than rows."""
    found = state_dict.pop(f"{prefix}weight_format", None)
    if found is not None and (name := INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING.get(int(found))) != "row":
        raise ValueError(f"{prefix}weight_format is {int(found)} ({name or 'unknown'}), expected 0 (row)")
