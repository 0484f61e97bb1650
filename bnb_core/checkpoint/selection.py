"""Which tensors of a checkpoint are weights of linear layers, told from names, shapes and config.json alone.

transformers decides on the model: every `nn.Linear` that no entry of `llm_int8_skip_modules` matches becomes a
quantized layer, and needs quantized tensors. A checkpoint is therefore right when its skip list and its tensors say the
same: `Selection` makes both, and whatever the list would match is not quantized either. The names are taken for those
of the model's modules; a model that transformers builds from other names than its file has (it fuses, splits or renames
when it loads) may need `--skip`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

__all__ = ["CONV1D_MODEL_TYPES", "Selection", "is_skipped_by", "select"]

_SUFFIX = ".weight"

# Tables of numbers per token, position or query: read by index, not multiplied.
_EMBEDDINGS = (
    r"embed|(?:^|[._])emb(?:\.|$)|(?:^|\.)(?:wte|wpe|shared|codebook|relative_attention_bias|bias_values"
    r"|reference_points|quer(?:y|ies)_feat(?:ures)?|pe_k|\w+_tokens?)$"
)
# What transformers keeps in full precision by default: the output head, which is often the embedding's twin.
_HEADS = (
    r"(?:^|\.)(?:lm_heads?|embed_out|output_projection|generator_lm_head|lm_loss|vocab_projector|codec_head|ctc_head"
    r"|classifier|score|qa_outputs)(?:\.|$)"
    r"|predictions\.decoder$|^pred_layer\.proj$|^(?:proj_out|head|decoder|output)$"
)
# A router is a bare parameter in most models of transformers 5, never an `nn.Linear` to rely on.
_ROUTERS = r"(?:^|\.)(?:gate$|router(?:\.|$))"
# Experts stored one by one are merged into one 3-D parameter at loading, which has no quantized form.
_EXPERTS = r"^(?P<experts>(?:.+\.)?experts)\."
_OF_EXPERTS = re.compile(r"experts?\b|moe\b")
# Modules that transformers never converts, whatever the skip list says.
_KEPT_IN_FP32 = r"\.DenseReluDense\.wo$|(?:^|\.)indexer\.weights_proj$"

_RULES = tuple(
    (reason, re.compile(pattern))
    for reason, pattern in (
        ("embedding", _EMBEDDINGS),
        ("output head", _HEADS),
        ("router", _ROUTERS),
        ("expert", _EXPERTS),
        ("kept in full precision by transformers", _KEPT_IN_FP32),
    )
)

# Models whose projections are a `Conv1D`: the weight lies transposed, [in, out].
CONV1D_MODEL_TYPES = ("clvp", "decision_transformer", "gpt-sw3", "gpt2", "imagegpt", "openai-gpt")
_CONV1D = re.compile(r"(?:^|\.)(?:c_attn|q_attn|c_proj|c_fc)$")

# Heads that share the embedding's tensor and so are often missing from the file: the list must name them all the same.
_HEADS_BY_NAME = ("lm_head",)
_TIED_HEADS = (
    "lm_head.decoder",
    "predictions.decoder",
    "generator_lm_head",
    "output_projection",
    "pred_layer.proj",
    "unembedding_projection",
    "vocab_projector",
    "embed_out",
    "proj_out",
    "ctc_head",
    "lm_loss",
)
# By model type, entries of the skip list for what is told by no name: projections of a class of their own (falcon,
# ibert, deepseek_v4), modules kept in fp32 (blip-2, deepseek_v4), tied layers and heads.
_BY_MODEL_TYPE: dict[str, tuple[str, ...]] = {
    "bark": ("fine_acoustics.lm_heads",),
    "blip-2": ("qformer",),
    "ctrl": ("transformer.w", "w"),
    "deepseek_v4": (r".*\.o_a_proj", r".*\.compressor"),
    "falcon": (".*",),
    "ibert": (".*",),
    "modernbert": ("decoder",),
    "modernbert-decoder": ("decoder",),
    "zamba": (r".*\.shared_transf",),
    "zamba2": (r".*\.shared_transformer",),
}


@dataclass(frozen=True)
class Selection:
    """What to do with each 2-D weight of a checkpoint.

    quantized: tensor names, with True where the tensor is stored transposed ([in, out]).
    skipped: the other 2-D weights, each with the reason.
    skip_modules: the entries of `llm_int8_skip_modules` that make transformers agree.
    left: how many tensors hold all experts of a layer, in three dimensions.
    """

    quantized: Mapping[str, bool]
    skipped: Mapping[str, str]
    skip_modules: Sequence[str]
    left: int


def select(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any], skip: Sequence[str] = ()) -> Selection:
    """Chooses the weights to quantize.

    shapes: tensor name → shape, of the whole checkpoint.
    config: contents of config.json.
    skip: regular expressions; a module in whose name one is found (`re.search`) is left as it is.

    Raises re.error for an invalid expression.
    """
    modules = [n.removesuffix(_SUFFIX) for n, shape in shapes.items() if n.endswith(_SUFFIX) and len(shape) == 2]
    user = [re.compile(pattern) for pattern in skip]
    model_types = set(_model_types(config))
    patterns = [*_HEADS_BY_NAME, *(p for t in sorted(model_types) for p in _BY_MODEL_TYPE.get(t, ()))]
    if config.get("tie_word_embeddings", True):
        patterns += _TIED_HEADS
    reasons = {module: reason for module in modules if (reason := _reason(module, shapes, user)) is not None}
    patterns = list(dict.fromkeys([*patterns, *map(_pattern, reasons)]))
    # A pattern may match more than the module it was made for: that is left out as well.
    for module in modules:
        if module not in reasons and is_skipped_by(module, patterns):
            reasons[module] = "transformers leaves it"
    conv1d = not model_types.isdisjoint(CONV1D_MODEL_TYPES)
    return Selection(
        quantized={m + _SUFFIX: conv1d and _CONV1D.search(m) is not None for m in modules if m not in reasons},
        skipped={m + _SUFFIX: reason for m, reason in reasons.items()},
        skip_modules=patterns,
        left=sum(len(shape) == 3 and _OF_EXPERTS.search(name) is not None for name, shape in shapes.items()),
    )


def is_skipped_by(module: str, patterns: Sequence[str]) -> bool:
    """True where transformers leaves `module` alone for one of `patterns`.

    A pattern is a regular expression for the name's beginning up to a dot or the end, or a plain ending of the name.
    """
    return any(module.endswith(pattern) or _compiled(pattern).match(module) for pattern in patterns)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))")


def _model_types(config: Mapping[str, Any]) -> Iterator[str]:
    """The model's type and those of its parts (a text or vision model inside)."""
    if isinstance(config.get("model_type"), str):
        yield config["model_type"]
    for part in config.values():
        if isinstance(part, dict):
            yield from _model_types(part)


def _reason(module: str, shapes: Mapping[str, Sequence[int]], user: Sequence[re.Pattern[str]]) -> str | None:
    if any(pattern.search(module) for pattern in user):
        return "--skip"
    if 0 in shapes[module + _SUFFIX]:
        return "empty"
    for reason, rule in _RULES:
        if rule.search(module):
            return reason
    parent, _, last = module.rpartition(".")
    if last == "out_proj" and f"{parent}.in_proj_weight" in shapes:
        return "part of nn.MultiheadAttention"
    return None


def _pattern(module: str) -> str:
    """The entry for a module: its name, or for an expert's the name of all experts of the layer."""
    experts = re.search(_EXPERTS, module)
    return experts["experts"] if experts else module
