"""What all optimizers share: state in 8 or 32 bits, one dispatch for parameters that are alike, and saving.

An optimizer is an update rule (a name that the step operators know) plus a state format.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..ops_registry.codebooks import dynamic_map
from ..ops_registry.formats import BLOCKWISE, OPTIMIZER_STATES

__all__ = ["KBitOptimizer"]

# In a saved state these stand in a dict of their own under WRAPPER: their dtype is theirs, never the parameter's.
TENSOR_KEYS = ("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")
WRAPPER = "__bnb_optimizer_quant_state__"


class KBitOptimizer(torch.optim.Optimizer):
    """Base class; a subclass names its `rule`, how many `betas` it takes, and its defaults.

    State per parameter: `step`; with 32 bits `state1` (and `state2`) in fp32; with 8 bits the same as uint8 codes of
    the codebooks `qmap1`, `qmap2` with one fp32 scale per 256 elements in `absmax1`, `absmax2`. Parameters below
    `min_8bit_size` elements keep 32-bit state. `optim_bits` and `min_8bit_size` can differ between parameter groups.

    Raises ValueError for hyperparameters out of range, and at `step()` RuntimeError for a sparse gradient or one whose
    dtype is not the parameter's.
    """

    rule: ClassVar[str]
    betas: ClassVar[int] = 2

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as in torch; its hyperparameters are checked."""
        _check_hyperparameters(self.defaults | param_group, self.betas)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters that have gradients; parameters alike in dtype, device and step go in one dispatch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # All is looked at before anything is written, so that a step that is refused leaves nothing half done.
        steps = [(group, key, params) for group in self.param_groups for key, params in self._alike(group).items()]
        for group, (device, _, step, in_8bit), params in steps:
            self._update(group, params, device, step, in_8bit)
            for p in params:
                self.state[p]["step"] = step
        return loss

    def _alike(self, group: dict[str, Any]) -> dict[tuple[torch.device, torch.dtype, int, bool], list[Tensor]]:
        alike: dict[tuple[torch.device, torch.dtype, int, bool], list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} takes dense gradients, got a sparse one of {tuple(p.shape)}")
            state = self.state[p]
            if not state:
                self._init_state(group, p, state)
            alike[p.device, p.dtype, state["step"] + 1, "qmap1" in state].append(p)
        return alike

    def _init_state(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> None:
        """Zeroed state of one parameter."""
        in_8bit = group["optim_bits"] == 8 and p.numel() >= group["min_8bit_size"]
        state["step"] = 0
        for i in range(1, OPTIMIZER_STATES[self.rule] + 1):
            if not in_8bit:
                state[f"state{i}"] = torch.zeros(p.shape, dtype=torch.float32, device=p.device)
                continue
            state[f"state{i}"] = torch.zeros(p.shape, dtype=torch.uint8, device=p.device)
            state[f"qmap{i}"] = _code(i, p.device)
            state[f"absmax{i}"] = torch.zeros(BLOCKWISE.scales(p.numel()), dtype=torch.float32, device=p.device)

    def _update(
        self, group: dict[str, Any], params: list[Tensor], device: torch.device, step: int, in_8bit: bool
    ) -> None:
        states = [self.state[p] for p in params]

        def each(key: str) -> list[Tensor] | None:
            return [state[key] for state in states] if key in states[0] else None

        tensors = (self.rule, [p.grad for p in params], params, each("state1"), each("state2"))
        on_device = (
            torch.full((), float(step), dtype=torch.float32, device=device),
            torch.as_tensor(group["lr"], dtype=torch.float32, device=device),
        )
        scalars = (*self._coefficients(group), group["eps"], group["weight_decay"], 1.0)
        if not in_8bit:
            torch.ops.bnb_core.optimizer_step_32bit.default(*tensors, None, *on_device, 0.0, *scalars)
            return
        maps = (states[0]["qmap1"], states[0].get("qmap2"))
        scales = (each("absmax1"), each("absmax2"))
        torch.ops.bnb_core.optimizer_step_8bit_blockwise.default(*tensors, *maps, *scales, *on_device, *scalars)

    def _coefficients(self, group: dict[str, Any]) -> tuple[float, float, float, float]:
        """beta1, beta2, beta3 and alpha, as the step operators take them."""
        beta1, beta2 = group["betas"]
        return beta1, beta2, 0.0, 0.0

    # -- saving ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the tensors of each state in a dict of their own, in the public package's layout."""
        saved = super().state_dict()
        return saved | {"state": {key: _wrapped(state) for key, state in saved["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Loads what `state_dict()` gave, or the public package's, with each tensor's own dtype kept.

        move_to_device: put the state on its parameter's device. Raises ValueError where groups do not match, as torch,
        and for a state that is not one of this optimizer: its keys, shapes, dtypes, or codebooks.
        """
        states = {key: _unwrapped(state) for key, state in state_dict["state"].items()}
        plain = {
            key: {name: value for name, value in state.items() if name not in TENSOR_KEYS}
            for key, state in states.items()
        }
        parameters = dict(_parameters_by_key(state_dict["param_groups"], self.param_groups))
        for key, p in parameters.items():
            if key in states:
                self._check_state(f"state of parameter {key}", p, states[key])
        super().load_state_dict(state_dict | {"state": plain})
        for key, p in parameters.items():
            for name in TENSOR_KEYS:
                if name in states.get(key, ()):
                    value = states[key][name]
                    self.state[p][name] = value.to(p.device) if move_to_device else value

    def _check_state(self, name: str, p: Tensor, state: dict[str, Any]) -> None:
        numbers = range(1, OPTIMIZER_STATES[self.rule] + 1)
        in_8bit = "qmap1" in state
        keys = [f"{key}{i}" for i in numbers for key in (("state", "qmap", "absmax") if in_8bit else ("state",))]
        found = {key for key in state if key in TENSOR_KEYS}
        if "step" not in state or found != set(keys):
            raise ValueError(f"{name} has {', '.join(map(str, state))}; expected step, {', '.join(keys)}")
        dtype, blocks = (torch.uint8, BLOCKWISE.scales(p.numel())) if in_8bit else (torch.float32, 0)
        for i in numbers:
            value = state[f"state{i}"]
            if (value.shape, value.dtype) != (p.shape, dtype):
                raise ValueError(
                    f"{name}: state{i} is {value.dtype} {tuple(value.shape)}, expected {dtype} {tuple(p.shape)}"
                )
            if in_8bit and state[f"absmax{i}"].numel() != blocks:
                scales = state[f"absmax{i}"].numel()
                raise ValueError(f"{name}: absmax{i} has {scales} scales, expected {blocks}, one per 256 elements")
            if in_8bit and not torch.equal(state[f"qmap{i}"].cpu(), _code(i, torch.device("cpu"))):
                raise ValueError(f"{name}: qmap{i} is not the dynamic map, which this optimizer's state is coded in")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)


def _code(number: int, device: torch.device) -> Tensor:
    """The codebook of state 1 (signed) or 2, shared by all parameters of a device."""
    return dynamic_map(signed=number == 1, device=device)


def _wrapped(state: dict[str, Any]) -> dict[str, Any]:
    tensors = {name: value for name, value in state.items() if name in TENSOR_KEYS}
    return {name: value for name, value in state.items() if name not in tensors} | {WRAPPER: tensors}


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != WRAPPER} | state.get(WRAPPER, {})


def _parameters_by_key(
    saved_groups: list[dict[str, Any]], groups: list[dict[str, Any]]
) -> Iterator[tuple[int, Tensor]]:
    for saved, group in zip(saved_groups, groups, strict=True):
        yield from zip(saved["params"], group["params"], strict=True)


def _check_hyperparameters(group: dict[str, Any], betas: int) -> None:
    for name in ("lr", "eps", "weight_decay"):
        if not group[name] >= 0:
            raise ValueError(f"{name} is {group[name]}, expected at least 0")
    if len(group["betas"]) != betas or not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas are {group['betas']}, expected {betas} of at least 0 and below 1")
    if group["optim_bits"] not in (8, 32):
        raise ValueError(f"optim_bits is {group['optim_bits']}, expected 8 or 32")
