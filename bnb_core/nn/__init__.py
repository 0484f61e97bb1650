"""Layers with quantized weights, and the parameters they hold."""

from . import parametrize
from .embedding import Embedding, Embedding4bit, Embedding8bit, EmbeddingFP4, EmbeddingNF4, StableEmbedding
from .experts import Experts4bit, GroupedLinear4bit
from .layer import QuantizedLayer
from .linear4bit import Linear4bit, LinearFP4, LinearNF4
from .linear8bit import Linear8bitLt
from .linear_fp8 import LinearFP8Global, LinearFP8Mixed
from .outliers import OutlierAwareLinear
from .params import Int8Params, Params4bit, QuantizedParameter
from .switchback import SwitchBackLinear, SwitchBackLinearGlobal, SwitchBackLinearVectorwise

__all__ = [
    "Embedding",
    "Embedding4bit",
    "Embedding8bit",
    "EmbeddingFP4",
    "EmbeddingNF4",
    "Experts4bit",
    "GroupedLinear4bit",
    "Int8Params",
    "Linear4bit",
    "Linear8bitLt",
    "LinearFP4",
    "LinearFP8Global",
    "LinearFP8Mixed",
    "LinearNF4",
    "OutlierAwareLinear",
    "Params4bit",
    "QuantizedLayer",
    "QuantizedParameter",
    "StableEmbedding",
    "SwitchBackLinear",
    "SwitchBackLinearGlobal",
    "SwitchBackLinearVectorwise",
    "parametrize",
]
