"""What a model is made of: which modules are quantized, which kernel each runs, which were left, and their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from .nn import (
    Embedding4bit,
    Embedding8bit,
    GroupedLinear4bit,
    Linear4bit,
    LinearFP8Global,
    LinearFP8Mixed,
    OutlierAwareLinear,
    QuantizedLayer,
    SwitchBackLinear,
)
from .nn.parametrize import Bnb4bitParametrization
from .nn.params import Int8Params, Params4bit, QuantizedParameter
from .ops_registry import OPS, chosen_kernel, kernel_counts
from .quant_state import QuantState

__all__ = ["ModuleReport", "Report", "report"]

# What weighs in a model, and has a quantized form.
REPLACEABLE = (nn.Linear, nn.Embedding)
COMPILED = "_orig_mod"  # the module inside of one that torch.compile returns


@dataclass(frozen=True)
class ModuleReport:
    """One module. what: its weight. operator, kernel: what its forward pass runs for one row; no operator where its
    weight is not quantized, no kernel where the operator cannot run. why: the reason for that. bytes: of its own
    parameters and scales. shared: those of them that a module before it has too.
    """

    name: str
    what: str
    bytes: int
    operator: str | None = None
    kernel: str | None = None
    why: str | None = None
    shared: int = 0


@dataclass(frozen=True)
class Report:
    """A model's modules that are quantized or could be. bytes: of all parameters, buffers and scales, once each.

    fallbacks: calls since the start of the process that ran on the reference although the device is an accelerator:
    (operator, device) → calls. `str()` of it is a table.
    """

    modules: tuple[ModuleReport, ...]
    bytes: int
    fallbacks: dict[tuple[str, str], int]

    @property
    def quantized(self) -> tuple[ModuleReport, ...]:
        return tuple(module for module in self.modules if module.operator is not None)

    @property
    def left(self) -> tuple[ModuleReport, ...]:
        return tuple(module for module in self.modules if module.operator is None)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for title, modules in (("quantized", self.quantized), ("left as they are", self.left)):
            size = sum(module.bytes - module.shared for module in modules)
            yield f"{len(modules)} {title}, {_megabytes(size)}"
            width = max((len(module.name) for module in modules), default=0)
            for module in modules:
                yield f"  {module.name:<{width}}  {module.what}, {_megabytes(module.bytes)}: {_runs(module)}"
        yield f"all parameters and buffers: {_megabytes(self.bytes)}"
        for (operator, device), calls in self.fallbacks.items():
            yield f"{operator} ran {calls} times on the reference on {device}"


def report(model: nn.Module) -> Report:
    """What a model is made of. Runs none of it.

    The kernel of a module is the one that runs for one row on the device where it is, in the dtype that its weight had
    (of an int8 weight: that of the bias, else bf16). Names are those of the model before `torch.compile`.
    """
    shared = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    modules: list[ModuleReport] = []
    listed: set[int] = set()
    for name, module in model.named_modules():
        name = ".".join(part for part in name.split(".") if part != COMPILED)
        for line, own in _lines_of(name, module, shared, model):
            parts = {id(t): t.nbytes for t in own}
            before = sum(size for key, size in parts.items() if key in listed)
            modules.append(replace(line, bytes=sum(parts.values()), shared=before))
            listed |= parts.keys()
    tensors = {id(t): t for p in model.parameters() for t in _tensors(p)} | {id(b): b for b in model.buffers()}
    for module in model.modules():
        if isinstance(module, Bnb4bitParametrization):
            tensors |= {id(t): t for t in _scales(module.quant_state)}
    fallbacks = {
        (operator, device): calls
        for (operator, device, kernel), calls in kernel_counts().items()
        if kernel == "reference" and device != "cpu"
    }
    return Report(tuple(modules), sum(t.nbytes for t in tensors.values()), fallbacks)


def _lines_of(
    name: str, module: nn.Module, shared: Counter[int], model: nn.Module
) -> Iterator[tuple[ModuleReport, list[Tensor]]]:
    """The lines of a module, whose bytes are those of the tensors beside."""
    parametrized = _parametrizations(module)
    for parameter, parts in parametrized.items():
        if isinstance(parts[0], Bnb4bitParametrization):
            state = parts[0].quant_state
            yield (
                _runs_on(f"{name}.{parameter}".strip("."), _four_bit(state), *_dequantizing(parts.original, state)),
                [parts.original, *_scales(state)],
            )
    if not isinstance(module, (QuantizedLayer, *REPLACEABLE)) or _is_four_bit(parametrized.get("weight")):
        return
    kept = list(module.parameters(recurse=False))
    kept += [p for parts in parametrized.values() if not _is_four_bit(parts) for p in parts.parameters()]
    yield _of_module(name, module, shared, model), [t for p in kept for t in _tensors(p)]


def _parametrizations(module: nn.Module) -> dict[str, Any]:
    # Not by getattr: a compiled module answers with the attributes of the one inside.
    return dict(module._modules.get("parametrizations") or {})  # type: ignore[arg-type]


def _is_four_bit(parametrizations: Any) -> bool:
    return parametrizations is not None and isinstance(parametrizations[0], Bnb4bitParametrization)


def _dequantizing(codes: Tensor, state: QuantState) -> tuple[str, tuple[Any, ...]]:
    shape, blocksize, quant_type = state.four_bit_format()
    return "dequantize_4bit", (codes, state.scales(), blocksize, quant_type, shape, state.dtype)


def _of_module(name: str, module: nn.Module, shared: Counter[int], model: nn.Module) -> ModuleReport:
    """The line of a module that is quantized or could be."""
    kind = type_before_parametrizations(module).__name__
    if (parts := _parametrizations(module).get("weight")) is not None:
        # Reading the weight would compute it.
        dtypes = dict.fromkeys(map(_dtype, parts.parameters(recurse=False)))
        by = ", ".join(type(part).__name__ for part in parts)
        return ModuleReport(name, f"{kind} {', '.join(dtypes)}", 0, why=f"its weight is parametrized by {by}")
    weight: Any = module.weight
    what = f"{kind} {_format(weight)}"
    if isinstance(weight, QuantizedParameter) and weight.quantized and (call := _call(module, weight)) is not None:
        return _runs_on(name, what, *call)
    return ModuleReport(name, what, 0, why=_why_left(name, module, weight, shared, model))


def _runs_on(name: str, what: str, operator: str, args: tuple[Any, ...]) -> ModuleReport:
    """A line with the kernel, or why there is none."""
    if args[OPS[operator].device_position].is_meta:
        return ModuleReport(name, what, 0, operator, why="it is on meta, where nothing is computed")
    try:
        return ModuleReport(name, what, 0, operator, chosen_kernel(operator, *args).name)
    except (RuntimeError, ValueError) as error:  # of its check, or of a forced kernel
        return ModuleReport(name, what, 0, operator, why=str(error))


def _runs(module: ModuleReport) -> str | None:
    if module.operator is None:
        return module.why
    return f"{module.operator} on {module.kernel}" if module.kernel else f"cannot run: {module.why}"


def _format(weight: Any) -> str:
    if isinstance(weight, Params4bit) and weight.quant_state is not None:
        return _four_bit(weight.quant_state)
    return "int8" if isinstance(weight, Int8Params) and weight.quantized else _dtype(weight)


def _dtype(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


def _four_bit(state: QuantState) -> str:
    return f"{state.quant_type} in blocks of {state.blocksize}{', nested' if state.nested else ''}"


def _call(module: nn.Module, weight: Any) -> tuple[str, tuple[Any, ...]] | None:
    """The operator of a module's forward pass, and arguments for one row."""
    device, bias = weight.device, getattr(module, "bias", None)
    if isinstance(weight, Int8Params):
        if weight.SCB is None:
            return None
        if isinstance(module, Embedding8bit):
            return "int8_vectorwise_dequant", (weight[:1], weight.SCB[:1])
        dtype = torch.bfloat16 if bias is None else bias.dtype
        x = torch.zeros(1, weight.shape[1], dtype=dtype, device=device)
        return "int8_linear", (x, weight, weight.SCB, bias, getattr(module, "threshold", 0.0))
    state = weight.quant_state
    shape, blocksize, quant_type = state.four_bit_format()
    absmax, *nested = state.statistics()
    if isinstance(module, Embedding4bit):
        row = torch.zeros(1, dtype=torch.int64, device=device)
        return "embedding_4bit", (row, weight, shape, absmax, blocksize, quant_type, module.dtype, *nested)
    dtype = getattr(module, "compute_dtype", None) or state.dtype
    x = torch.zeros(1, shape[-1], dtype=dtype, device=device)
    how = (x, weight, shape, absmax, blocksize, quant_type)
    if isinstance(module, GroupedLinear4bit):
        return "grouped_gemm_4bit", (*how, torch.ones(shape[0], dtype=torch.int64, device=device), bias, *nested)
    return ("gemm_4bit", (*how, bias, *nested)) if isinstance(module, Linear4bit) else None


def _why_left(name: str, module: nn.Module, weight: Any, shared: Counter[int], model: nn.Module) -> str:
    from .checkpoint.selection import is_skipped_by  # brings safetensors

    if isinstance(weight, QuantizedParameter):
        if isinstance(weight, Int8Params) and weight.has_fp16_weights:
            return "quantized in each forward pass (has_fp16_weights=True)"
        return "quantized at its first move to a device"
    if isinstance(module, SwitchBackLinear):
        return "quantized to int8 in each forward pass, until prepare_for_eval()"
    if isinstance(module, (LinearFP8Global, LinearFP8Mixed)):
        return "rounded to 8-bit floats in each forward pass, which saves no memory"
    if isinstance(module, OutlierAwareLinear):
        return f"quantized by its quantize_weight{'' if module.is_quantized else ', in a forward pass to come'}"
    # Of torch.nn.utils.weight_norm and prune.
    if parts := [part for part in module._parameters if part.startswith("weight_")]:
        return f"its weight is computed from {', '.join(parts)}"
    if shared[id(weight)] > 1:
        return "its weight is shared with another module"
    if is_skipped_by(name, _skipped(model)):
        return "named in llm_int8_skip_modules"
    return "was not replaced by a quantized layer"


def _skipped(model: nn.Module) -> tuple[str, ...]:
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    return tuple(getattr(config, "llm_int8_skip_modules", None) or ())


def _tensors(parameter: Tensor) -> Iterator[Tensor]:
    """A parameter, and its scales."""
    yield parameter
    if isinstance(parameter, Params4bit) and parameter.quant_state is not None:
        yield from _scales(parameter.quant_state)
    if isinstance(parameter, Int8Params) and parameter.SCB is not None:
        yield parameter.SCB


def _scales(state: QuantState) -> Iterator[Tensor]:
    yield state.absmax
    if state.state2 is not None:
        yield state.state2.absmax


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
