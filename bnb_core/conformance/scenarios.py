"""Layers and optimizers on a device, from one end to the other, beside the same on the CPU's reference."""

from __future__ import annotations

import copy
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bnb_core import optim
from bnb_core.nn import Embedding8bit, EmbeddingNF4, Experts4bit, Linear4bit, Linear8bitLt
from bnb_core.ops_registry import EXACT, OPS, FallbackWarning, Tolerance, differences, force, kernel_counts
from bnb_core.optim.factory import NAMES

from .findings import Failure, ScenarioTrial
from .run import operators_of

__all__ = ["SCENARIOS", "Scenario", "end_to_end", "try_scenario"]

FEATURES, OUTPUTS, ROWS = 96, 40, 5  # blocks of 64 straddle the rows
ELEMENTS = 4096 + 100  # enough for 8-bit state, with a last block that is not full
OUTLIERS = 8.0


@dataclass(frozen=True)
class Scenario:
    """levels: the claims that take it. run: what is wrong on a device, in sentences."""

    name: str
    levels: tuple[str, ...]
    run: Callable[[str], Iterator[str]]


@dataclass(frozen=True)
class _Layer:
    """make: a layer before it is quantized, with weights of its own. inputs: what its forward pass takes. op: the
    operator whose tolerance holds.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    op: str

    @property
    def tolerance(self) -> Tolerance:
        return OPS[self.op].tolerance

    def reference(self) -> nn.Module:
        """On the CPU, quantized by the reference; the same in every call."""
        torch.manual_seed(0)
        with _judging():
            return self.make().to("cpu")


def end_to_end(device: str, level: str = "full", names: Sequence[str] | None = None) -> Iterator[ScenarioTrial]:
    """Runs the scenarios of a level on a device, or of those the ones of some names. Raises ValueError for others."""
    operators_of(level)
    for scenario in SCENARIOS if names is None else map(_scenario, names):
        if level in scenario.levels:
            yield _tried(scenario, device)


def _scenario(name: str) -> Scenario:
    found = next((scenario for scenario in SCENARIOS if scenario.name == name), None)
    if found is None:
        raise ValueError(f"there is no scenario {name!r}; there are {', '.join(s.name for s in SCENARIOS)}")
    return found


def try_scenario(device: str, name: str) -> list[str]:
    """What is wrong with one scenario, in sentences; nothing where it is right. Raises ValueError for another name."""
    return _sentences(_scenario(name), device)


def _tried(scenario: Scenario, device: str) -> ScenarioTrial:
    before = Counter(kernel_counts())
    _judged.clear()
    sentences = _sentences(scenario, device)
    ran = Counter(kernel_counts()) - before - _judged
    kernels = tuple(f"{op}: {kernel}" for op, where, kernel in ran if where == device)
    if not sentences:
        return ScenarioTrial(scenario.name, scenario.levels, kernels)
    program = f"import bnb_core\nfrom bnb_core.conformance import try_scenario\nprint(*try_scenario({device!r}, "
    program += f"{scenario.name!r}), sep='\\n')"
    failure = Failure("end to end", scenario.name, tuple(sentences), program)
    return ScenarioTrial(scenario.name, scenario.levels, kernels, failure)


# Calls that made what is right, which are none of the device's.
_judged: Counter[tuple[str, str, str]] = Counter()


@contextmanager
def _judging() -> Iterator[None]:
    """The reference, for what is right."""
    before = Counter(kernel_counts())
    with force("reference"):
        yield
    _judged.update(Counter(kernel_counts()) - before)


def _sentences(scenario: Scenario, device: str) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # the kernels that ran are reported
        try:
            return list(scenario.run(device))
        except (Exception, SystemExit) as error:  # noqa: BLE001  a vendor's device may raise anything
            return [f"it raised {type(error).__name__}: {error}"]


# -- layers ----------------------------------------------------------------------------------------------------------


def _forward(layer: _Layer, device: str) -> Iterator[str]:
    """A layer that was quantized on the CPU and moved."""
    reference = layer.reference()
    yield from _close(layer, _on(device, reference)(*_moved(layer.inputs(), device)), _expected(layer, reference))


def _checkpoint(layer: _Layer, device: str) -> Iterator[str]:
    """A state dict of the CPU, loaded here, saved here and read on the CPU again."""
    reference = layer.reference()
    torch.manual_seed(1)
    here = layer.make()
    here.load_state_dict(_saved_and_loaded(reference.state_dict()))
    here = here.to(device)
    yield from _close(layer, here(*_moved(layer.inputs(), device)), _expected(layer, reference))
    again = _saved_and_loaded(tree_map_only(Tensor, Tensor.cpu, dict(here.state_dict())))
    yield from _same_tensors(again, reference.state_dict())


def _quantized_here(layer: _Layer, device: str) -> Iterator[str]:
    """The same bytes come of the same weights."""
    torch.manual_seed(0)
    here = layer.make().to(device)
    yield from _same_tensors(tree_map_only(Tensor, Tensor.cpu, dict(here.state_dict())), layer.reference().state_dict())


def _gradients(layer: _Layer, device: str) -> Iterator[str]:
    """Of the input and of what trains, as a scalar's of the result."""

    def gradients(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        wanted = [t.requires_grad_() for t in inputs if t.is_floating_point()]
        wanted += [p for p in module.parameters() if p.requires_grad]
        result = module(*inputs)
        weights = torch.linspace(-1, 1, result.numel()).view(result.shape).to(result)
        return list(torch.autograd.grad((result * weights).sum(), wanted))

    reference = layer.reference()
    got = gradients(_on(device, reference), _moved(layer.inputs(), device))
    with _judging():
        want = gradients(reference, layer.inputs())
    yield from differences(got, want, layer.tolerance, "gradient")


def _compiled(layer: _Layer, device: str) -> Iterator[str]:
    """One graph of torch.compile."""
    here, inputs = _on(device, layer.reference()), _moved(layer.inputs(), device)
    torch.compiler.reset()
    yield from _close(layer, torch.compile(here, fullgraph=True, backend="aot_eager")(*inputs), here(*inputs))


def _exported(layer: _Layer, device: str) -> Iterator[str]:
    """A program of torch.export."""
    here, inputs = _on(device, layer.reference()), _moved(layer.inputs(), device)
    yield from _close(layer, torch.export.export(here, inputs).module()(*inputs), here(*inputs))


def _on(device: str, module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(device)


def _moved(tensors: tuple[Tensor, ...], device: str) -> tuple[Tensor, ...]:
    return tuple(tensor.to(device) for tensor in tensors)


def _expected(layer: _Layer, reference: nn.Module) -> Tensor:
    with _judging():
        return reference(*layer.inputs())


def _close(layer: _Layer, got: Tensor, want: Tensor) -> list[str]:
    return differences(got, want, layer.tolerance)


def _same_tensors(got: dict[str, Any], want: dict[str, Any]) -> Iterator[str]:
    if list(got) != list(want):
        yield f"the names are {', '.join(got)}, expected {', '.join(want)}"
    for name in got.keys() & want.keys():
        yield from differences(got[name], want[name], EXACT, name)


def _saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _normal(*shape: int, dtype: torch.dtype, outlier: float = 0.0) -> tuple[Tensor, ...]:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    values[..., 3] += outlier
    return (values.to(dtype),)


def _linear_4bit(dtype: torch.dtype, **options: Any) -> _Layer:
    return _Layer(
        lambda: Linear4bit(FEATURES, OUTPUTS, compute_dtype=dtype, **options).to(dtype),
        partial(_normal, ROWS, FEATURES, dtype=dtype),
        "gemm_4bit",
    )


def _linear_8bit(dtype: torch.dtype, threshold: float) -> _Layer:
    return _Layer(
        lambda: Linear8bitLt(FEATURES, OUTPUTS, has_fp16_weights=False, threshold=threshold).to(dtype),
        partial(_normal, ROWS, FEATURES, dtype=dtype, outlier=OUTLIERS),
        "int8_linear",
    )


def _embedding(kind: type[nn.Module]) -> _Layer:
    return _Layer(lambda: kind(OUTPUTS, 128), lambda: (torch.tensor([[0, 7], [OUTPUTS - 1, 7]]),), "embedding_4bit")


def _experts() -> _Layer:
    def inputs() -> tuple[Tensor, ...]:
        chosen = torch.tensor([[0, 2], [2, 3], [0, 3], [3, 0], [2, 0]])
        return (*_normal(ROWS, FEATURES, dtype=torch.float32), chosen, torch.full((ROWS, 2), 0.5))

    return _Layer(lambda: Experts4bit(4, FEATURES, 2 * OUTPUTS), inputs, "grouped_gemm_4bit")


LAYERS = {
    "Linear4bit nf4 float32": _linear_4bit(torch.float32, quant_type="nf4", compress_statistics=False),
    "Linear4bit nf4 nested bfloat16": _linear_4bit(torch.bfloat16, quant_type="nf4"),
    "Linear4bit fp4 float16": _linear_4bit(torch.float16, quant_type="fp4", compress_statistics=False, bias=False),
    "Linear8bitLt float16": _linear_8bit(torch.float16, 0.0),
    "Linear8bitLt bfloat16 with outliers": _linear_8bit(torch.bfloat16, 6.0),
    "EmbeddingNF4": _embedding(EmbeddingNF4),
    "Embedding8bit": _embedding(Embedding8bit),
    "Experts4bit": _experts(),
}


# -- optimizers ------------------------------------------------------------------------------------------------------


def _optimizer(rule: str, bits: int, device: str) -> Iterator[str]:
    """Two steps; before the second one the state is a checkpoint of the CPU's, so that both begin with the same."""
    tolerance = OPS["optimizer_step_32bit" if bits == 32 else "optimizer_step_8bit_blockwise"].tolerance
    start = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(0))
    reference, here = (_Training(rule, bits, start.to(where, copy=True)) for where in ("cpu", device))
    for number in (1, 2):
        with _judging():
            reference.step(number)
        here.step(number)
        got, want = here.tensors(), reference.tensors()
        if torch.equal(got["parameter"], start):
            yield "the parameter did not change"
        if list(got) != list(want):
            yield f"the state has {', '.join(got)}, expected {', '.join(want)}"
        for name in got.keys() & want.keys():
            yield from differences(got[name], want[name], tolerance, f"{name} after step {number}")
        start = reference.parameter.detach().clone()
        here = _Training(rule, bits, start.to(device, copy=True))
        here.optimizer.load_state_dict(_saved_and_loaded(reference.optimizer.state_dict()))


class _Training:
    """A parameter and its optimizer."""

    def __init__(self, rule: str, bits: int, start: Tensor) -> None:
        self.parameter = nn.Parameter(start)
        needed: dict[str, Any] = {"lr": 1e-2, "momentum": 0.9} if rule in ("sgd", "lars") else {"lr": 1e-2}
        self.optimizer = optim.create(rule, [self.parameter], bits=bits, **needed)

    def step(self, number: int) -> None:
        gradient = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(number))
        self.parameter.grad = gradient.to(self.parameter.device)
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """The parameter and its state, on the CPU."""
        state = self.optimizer.state[self.parameter]
        found = {name: value.cpu() for name, value in sorted(state.items()) if isinstance(value, Tensor)}
        return {"parameter": self.parameter.detach().cpu()} | found


def _scenarios() -> Iterator[Scenario]:
    run, train = ("inference", "qlora", "full"), ("qlora", "full")
    for name, layer in LAYERS.items():
        for what, levels, trial in (
            ("forward", run, _forward),
            ("checkpoint", run, _checkpoint),
            ("quantized here", train, _quantized_here),
            ("gradients", train, _gradients),
            ("compiled", run, _compiled),
            ("exported", run, _exported),
        ):
            if what != "gradients" or not name.startswith("Embedding"):
                yield Scenario(f"{name}, {what}", levels, partial(trial, layer))
    for rule in NAMES:
        for bits in (32, 8):
            yield Scenario(f"{rule}, {bits}-bit state", ("optimizers", "full"), partial(_optimizer, rule, bits))


SCENARIOS = tuple(_scenarios())
