"""What all optimizers share: state in 8 or 32 bits, one dispatch for parameters that are alike, and saving.

An optimizer is an update rule (a name that the step operators know) plus a state format.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..ops_registry.formats import BLOCKWISE, FLOATS, FP32, GNORM_HISTORY, PER_TENSOR, StateFormat
from . import sharding
from . import state as states
from .overrides import GlobalOptimManager
from .paging import prefetch, state_memory, to_paged_memory
from .state import TENSOR_KEYS, State

__all__ = ["KBitOptimizer", "refuse_unless_off", "without_bits"]

# In a saved state tensors stand in a dict of their own under this key: their dtype is theirs, never the parameter's.
WRAPPER = "__bnb_optimizer_quant_state__"

# Options that say how state is kept and not what a step does. They are the optimizer's and not the saved state's.
FORMAT_OPTIONS = ("optim_bits", "min_8bit_size", "block_wise", "is_paged")


class Bundles(NamedTuple):
    """Parameters of a group, those alike side by side. The first lists have an entry per parameter, the others one per
    bundle of parameters alike; `clocks` has each step counter once.

    `torch.compile` fills such lists in Python while it traces a step, so they hold tensors and constants only.
    """

    grads: list[Tensor]
    params: list[Tensor]
    state1: list[Tensor]
    state2: list[Tensor | None]
    scale1: list[Tensor | None]
    scale2: list[Tensor | None]
    unorm_vec: list[Tensor | None]
    gnorm_vec: list[Tensor | None]
    sizes: list[int]
    forms: list[str]
    qmap1: list[Tensor | None]
    qmap2: list[Tensor | None]
    steps: list[Tensor]
    overridden: list[dict[str, Any]]
    clocks: list[Tensor]


class KBitOptimizer(torch.optim.Optimizer):
    """Base class; a subclass names its `rule` and its hyperparameters, and may fix the bits.

    Options: optim_bits, 8 or 32 bits of state. min_8bit_size: parameters with fewer elements keep 32-bit state.
    block_wise: with 8 bits one scale per block of 256 elements, else one per tensor. is_paged: large state in memory
    that the device can push out to the host, where it has such. percentile_clipping: below 100, gradients are clipped
    to that percentile of the norms of the parameter's last 100. skip_zeros: elements whose gradient is 0 stay as they
    are, their state too. max_unorm: above 0, the norm of an update is at most that share of the parameter's; 32-bit
    state only. maximize: up the gradient. All can differ between parameter groups, and most between parameters, by
    `GlobalOptimManager`. `args` is refused: options are given one by one.

    State per parameter: `step`, a 0-dim fp32 tensor on its device that parameters share; with 32 bits `state1` (and
    `state2`) in fp32; with 8 bits the same as uint8 codes of the codebooks `qmap1`, `qmap2` with fp32 scales in
    `absmax1`, `absmax2` (`max1`, `max2` per tensor). A saved state has `step` as a number.

    There is no `foreach` or `fused` to choose: parameters that are alike always go in one dispatch. Parameters share a
    step counter as long as they take the same steps, and only then a dispatch. A step waits for
    the device only for percentile clipping, and for schedules by `t_alpha` and `t_beta3`. Of a sharded parameter
    (DTensor) each process updates its shard.

    Raises ValueError for hyperparameters out of range, and at `step()` RuntimeError for a sparse gradient or one whose
    dtype is not the parameter's.
    """

    rule: ClassVar[str]
    number_of_betas: ClassVar[int] = 2
    fixed_bits: ClassVar[int | None] = None
    always_paged: ClassVar[bool] = False
    default_max_unorm: ClassVar[float] = 0.0

    # Another text after each change of which parameters share a step counter.
    _splits: str = "0"

    def __init__(
        self,
        params: Iterable[Any],
        hyperparameters: dict[str, Any],
        *,
        optim_bits: int = 32,
        args: None = None,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
        block_wise: bool = True,
        percentile_clipping: int = 100,
        skip_zeros: bool = False,
        max_unorm: float = 0.0,
        maximize: bool = False,
    ) -> None:
        if args is not None:
            raise ValueError("args is given, but options are given one by one, as optim_bits and min_8bit_size")
        bits = optim_bits if self.fixed_bits is None else self.fixed_bits
        if optim_bits not in (32, bits):
            raise ValueError(f"optim_bits is {optim_bits}, but {type(self).__name__} keeps {bits}-bit state")
        options = {
            "optim_bits": bits,
            "min_8bit_size": min_8bit_size,
            "block_wise": block_wise,
            "is_paged": is_paged or self.always_paged,
            "percentile_clipping": percentile_clipping,
            "skip_zeros": skip_zeros,
            "max_unorm": max_unorm,
            "maximize": maximize,
        }
        super().__init__(params, hyperparameters | options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as in torch; its hyperparameters are checked."""
        self._check(self.defaults | param_group)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters that have gradients; those alike in dtype, device and state in one dispatch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # All is looked at before anything is written, so that a step that is refused leaves nothing half done.
        work = []
        for group in self.param_groups:
            bundles = Bundles(*([] for _ in Bundles._fields))  # Dynamo of torch 2.6 traces no _make, nor | of dicts
            self._init_group(group, *bundles)
            work.append((group, bundles))
        # Never so, but read: torch.compile guards on both, and after a change of either the lists are others. An assert
        # would be gone under python -O, and the guards with it.
        if not (self._splits and GlobalOptimManager.changes):
            raise RuntimeError("the optimizer has lost the marks that torch.compile guards on")
        for group, bundles in work:
            for clock in bundles.clocks:
                clock.add_(1)
            first = 0
            for number, size in enumerate(bundles.sizes):
                self._update(group, bundles, number, first, first + size)
                first += size
        return loss

    # -- what is updated ---------------------------------------------------------------------------------------------

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> None:
        """Fills `Bundles` for the parameters of a group, and makes their state where there is none.

        `torch.compile` knows this method of torch's optimizers by name, and calls it without tracing it.
        """
        overrides = self._overrides(group)
        new_clocks: dict[torch.device, Tensor] = {}
        waiting: set[int] = set()
        mine: set[int] = set()
        moved: dict[int, Tensor] = {}
        found: dict[tuple[Any, ...], _Alike] = {}
        for i, p in enumerate(group["params"]):
            grad, own = p.grad, self.state.get(p)
            if own and id(own["step"]) not in mine:
                mine.add(self._claimed(own, group, moved))
            if grad is None:
                if own:
                    waiting.add(id(own["step"]))
                continue
            if grad.layout is not torch.strided or grad.dtype is not p.dtype:
                self._refuse_gradient(p, grad)
            override, key_of_override = overrides[i] if overrides else ({}, None)
            if not own:
                own = self._new_state(p, group | override)
                if p.device not in new_clocks:
                    new_clocks[p.device] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p] = own = {"step": new_clocks[p.device]} | own
                mine.add(self._claimed(own, group, moved))
            # A step counter belongs to one device.
            key = (id(own["step"]), p.dtype, "absmax1" in own, "max1" in own, key_of_override)
            alike = found.get(key)
            if alike is None:
                found[key] = alike = _Alike(own["step"], override)
            alike.members.append((p, own))
        for alike in found.values():
            self._complete(alike, group | alike.override)
        self._split_clocks(found.values(), waiting)
        _fill(Bundles(*lists), found.values())

    def _overrides(self, group: dict[str, Any]) -> list[tuple[dict[str, Any], Any]] | None:
        """For each parameter of a group what is overridden, and a key that tells overrides apart."""
        manager = GlobalOptimManager.get_instance()
        version = (manager.changes, tuple(map(id, group["params"])))
        known = self.__dict__.setdefault("_known_overrides", {})
        if known.get(id(group), (None,))[0] != version:
            overrides = manager.overrides(group, self.param_groups)
            for override in filter(None, overrides or ()):
                if missing := [name for name in override if name not in group]:
                    raise ValueError(f"{', '.join(missing)} is overridden, which {type(self).__name__} does not have")
                self._check(group | override)
            with_keys = None if overrides is None else [(override, _key(override)) for override in overrides]
            known[id(group)] = version, with_keys
        found: list[tuple[dict[str, Any], Any]] | None = known[id(group)][1]
        return found

    def _complete(self, alike: _Alike, settings: dict[str, Any]) -> None:
        """Adds to states what options need that can change between steps, and brings paged ones to the device."""
        dtype = alike.members[0][0].dtype
        if dtype not in FLOATS:
            raise RuntimeError(f"{type(self).__name__} takes parameters in fp32, fp16 or bf16, got one in {dtype}")
        with_norms = settings["max_unorm"] > 0 or settings["percentile_clipping"] < GNORM_HISTORY
        for p, own in alike.members:
            if with_norms:
                self._add_norms(p, own, settings)
            if settings["is_paged"]:
                prefetch(own, alike.clock.device)

    def _refuse_gradient(self, p: Tensor, grad: Tensor) -> None:
        name = type(self).__name__
        if grad.layout is not torch.strided:
            raise RuntimeError(f"{name} takes dense gradients, got a sparse one of {tuple(p.shape)}")
        raise RuntimeError(f"{name} takes gradients of the parameter's dtype {p.dtype}, got one of {grad.dtype}")

    def _claimed(self, own: State, group: dict[str, Any], moved: dict[int, Tensor]) -> int:
        """The id of a state's step counter, which belongs to this group; in the place of another group's, of a copy.

        A parameter can come from another group, or its state from another optimizer. moved: the copies.
        """
        owners = self.__dict__.setdefault("_owners", WeakIdKeyDictionary())
        clock = own["step"]
        if owners.setdefault(clock, id(group)) != id(group):
            own["step"] = clock = self._copy_of(clock, moved)
            owners[clock] = id(group)
        return id(clock)

    def _copy_of(self, clock: Tensor, copies: dict[int, Tensor]) -> Tensor:
        """The one copy of a step counter among those made so far, or a new one."""
        if id(clock) not in copies:
            copies[id(clock)] = clock.clone()
            self._splits = str(int(self._splits) + 1)
        return copies[id(clock)]

    def _split_clocks(self, found: Iterable[_Alike], waiting: set[int]) -> None:
        """Gives parameters that take this step counters of their own where others that share theirs do not."""
        apart: dict[int, Tensor] = {}
        for alike in found:
            if id(alike.clock) in waiting:
                alike.clock = self._copy_of(alike.clock, apart)
                for _, own in alike.members:
                    own["step"] = alike.clock

    def _form(self, p: Tensor, settings: dict[str, Any]) -> StateFormat:
        """The format in which a parameter's state is kept."""
        if settings["optim_bits"] == 32 or p.numel() < settings["min_8bit_size"]:
            return FP32
        return BLOCKWISE if settings["block_wise"] else PER_TENSOR

    def _new_state(self, p: Tensor, settings: dict[str, Any]) -> State:
        """Zeroed state of one parameter, without `step`."""
        self._check(settings)
        form = self._form(p, settings)
        p = sharding.local(p)
        zeros = state_memory(p.device, settings["is_paged"])
        return states.zeroed(self.rule, form, p.shape, p.device, zeros)

    def _add_norms(self, p: Tensor, own: State, settings: dict[str, Any]) -> None:
        """Adds to a state what limits by norms need, of the update or of past gradients."""
        if sharding.is_sharded(p):
            limit = 0 if "qmap1" not in own else settings["max_unorm"]
            for name, off in (("max_unorm", limit), ("percentile_clipping", GNORM_HISTORY)):
                if settings[name] != off:
                    raise ValueError(
                        f"{name} is {settings[name]}, expected {off} for a sharded parameter, of whose norm each "
                        "process knows its part"
                    )
        if settings["max_unorm"] > 0 and "unorm_vec" not in own:
            own["unorm_vec"] = torch.zeros(1, dtype=torch.float32, device=p.device)
        if settings["percentile_clipping"] < GNORM_HISTORY and "gnorm_vec" not in own:
            own["gnorm_vec"] = states.new_gradient_norms(p.device)

    # -- the update --------------------------------------------------------------------------------------------------

    def _update(self, group: dict[str, Any], bundles: Bundles, number: int, first: int, last: int) -> None:
        """One dispatch, for parameters `first` to `last`; one for each scale where their gradients are clipped."""
        settings = {**group, **bundles.overridden[number]}
        members = range(first, last)
        if not settings["percentile_clipping"] < GNORM_HISTORY:
            self._dispatch(settings, bundles, number, list(members), 1.0)
            return
        step = int(bundles.steps[number].item())
        clip = torch.ops.bnb_core.percentile_clipping.default
        percentile = settings["percentile_clipping"]
        scales = torch.stack([clip(bundles.grads[i], bundles.gnorm_vec[i], step, percentile)[2] for i in members])
        of_scale: dict[float, list[int]] = {}
        for i, scale in zip(members, scales.tolist(), strict=True):
            of_scale.setdefault(scale, []).append(i)
        for scale, chosen in of_scale.items():
            self._dispatch(settings, bundles, number, chosen, scale)

    def _dispatch(
        self, settings: dict[str, Any], bundles: Bundles, number: int, chosen: list[int], gnorm_scale: float
    ) -> None:
        def each(tensors: list[Any]) -> list[Tensor] | None:
            return [tensors[i] for i in chosen] if tensors[chosen[0]] is not None else None

        step = bundles.steps[number]
        lr = settings["lr"]
        if isinstance(lr, Tensor):
            lr = lr.to(device=step.device, dtype=torch.float32).reshape(())
        else:
            lr = torch.full((), lr, dtype=torch.float32, device=step.device)
        sign = -1.0 if settings["maximize"] else 1.0
        tensors = (self.rule, each(bundles.grads), each(bundles.params), each(bundles.state1), each(bundles.state2))
        rest = (*self._coefficients(settings, step), float(settings["eps"]), float(settings["weight_decay"]))
        last = (sign * gnorm_scale, settings["skip_zeros"])
        if bundles.forms[number] == FP32.name:
            unorm_vec = each(bundles.unorm_vec)
            limit = settings["max_unorm"] if unorm_vec is not None else 0.0
            torch.ops.bnb_core.optimizer_step_32bit.default(*tensors, unorm_vec, step, lr, limit, *rest, *last)
            return
        coded = (bundles.qmap1[number], bundles.qmap2[number], each(bundles.scale1), each(bundles.scale2))
        ops = torch.ops.bnb_core
        per_block = bundles.forms[number] == BLOCKWISE.name
        op = ops.optimizer_step_8bit_blockwise if per_block else ops.optimizer_step_8bit
        op.default(*tensors, *coded, step, lr, *rest, *last)

    def _coefficients(self, settings: dict[str, Any], step: Tensor) -> tuple[float, float, float, float]:
        """beta1, beta2, beta3 and alpha, as the step operators take them."""
        beta1, beta2 = settings["betas"]
        return float(beta1), float(beta2), 0.0, 0.0

    # -- hyperparameters ---------------------------------------------------------------------------------------------

    def _check(self, group: dict[str, Any]) -> None:
        """Raises ValueError for a hyperparameter of a group that is out of range."""
        for name in ("lr", "eps", "weight_decay", "max_unorm"):
            if not group[name] >= 0:
                raise ValueError(f"{name} is {group[name]}, expected at least 0")
        betas, count = group["betas"], self.number_of_betas
        if len(betas) != count or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}, expected {count} of at least 0 and below 1")
        if group["optim_bits"] not in (8, 32):
            raise ValueError(f"optim_bits is {group['optim_bits']}, expected 8 or 32")
        percentile = group["percentile_clipping"]
        if not isinstance(percentile, int) or not 0 <= percentile <= GNORM_HISTORY:
            raise ValueError(f"percentile_clipping is {percentile}, expected a whole number of 0 to {GNORM_HISTORY}")
        if group["optim_bits"] == 8 and group["max_unorm"] not in (0, self.default_max_unorm):
            raise ValueError(
                f"max_unorm is {group['max_unorm']}, expected {self.default_max_unorm} with optim_bits=8: "
                "a step on 8-bit state does not limit the norm of the update"
            )

    # -- saving ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the tensors of each state in a dict of their own, in the public package's layout.

        `step` is a number. Options of the state's format are left out. The state of a sharded parameter is made of
        DTensors, which torch.distributed.checkpoint saves and loads into any number of processes; parameters that are
        not sharded take such a checkpoint after `dcp_to_torch_save`, or the full state. Its option
        `flatten_optimizer_state_dict` cannot load this layout.
        """
        saved = super().state_dict()
        numbers: dict[int, int] = {}
        of_key = dict(_parameters_by_key(saved["param_groups"], self.param_groups))
        state = {key: self._saved(of_key.get(key), own, numbers) for key, own in saved["state"].items()}
        groups = [{k: v for k, v in group.items() if k not in FORMAT_OPTIONS} for group in saved["param_groups"]]
        return saved | {"state": state, "param_groups": groups}

    def _saved(self, p: Tensor | None, own: State, numbers: dict[int, int]) -> State:
        clock = own["step"]
        if id(clock) not in numbers:
            numbers[id(clock)] = int(clock)
        tensors = {name: value for name, value in own.items() if name in TENSOR_KEYS}
        others = {name: value for name, value in own.items() if name not in tensors}
        if sharding.is_sharded(p):
            tensors = sharding.saved(self.rule, p, tensors)
        # Codebooks are shared by all states; formats like safetensors take no tensor twice.
        tensors |= {name: value.clone() for name, value in tensors.items() if name.startswith("qmap")}
        return others | {"step": numbers[id(clock)], WRAPPER: tensors}

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Loads what `state_dict()` gave, or the public package's.

        Hyperparameters become the saved ones; the format of the state stays this optimizer's, and a state in another
        one (bits, scales per tensor or per block, also of 2048 as in older versions) is converted. move_to_device: put
        the state on its parameter's device. Raises ValueError where groups do not match, as torch, and for a state
        that is not one of this optimizer: its keys, shapes, dtypes, or codebooks.
        """

        def prepare(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            return given | self._prepared(given, move_to_device)

        handle = self.register_load_state_dict_pre_hook(prepare)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def _prepared(self, given: dict[str, Any], move_to_device: bool) -> dict[str, Any]:
        """What torch's `load_state_dict` is given: our own states as something that it does not cast."""
        pairs = list(zip(given["param_groups"], self.param_groups, strict=False))
        counts = [[len(group["params"]) for group in groups] for groups in (given["param_groups"], self.param_groups)]
        if counts[0] != counts[1]:
            return {}  # torch refuses it with a sentence
        groups = []
        for number, (saved, group) in enumerate(pairs):
            merged = group | saved | {name: group[name] for name in FORMAT_OPTIONS}
            try:
                self._check(merged)
            except ValueError as error:
                raise ValueError(f"parameter group {number} of the state dict: {error}") from None
            groups.append(merged)
        state = {}
        clocks: dict[tuple[torch.device, int, int], Tensor] = {}
        keys = iter(dict(_parameters_by_key(groups, self.param_groups)).items())
        for number, group in enumerate(self.param_groups):
            overrides = self._overrides(group)
            for i, (key, p) in zip(range(len(group["params"])), keys, strict=False):
                if key not in given["state"]:
                    continue
                settings = group | overrides[i][0] if overrides else group
                own = self._loaded(f"state of parameter {key}", p, given["state"][key], settings, move_to_device)
                at = (p.device, number, own["step"])
                if at not in clocks:
                    clocks[at] = torch.full((), float(own["step"]), dtype=torch.float32, device=p.device)
                state[key] = _Loaded(own | {"step": clocks[at]})
        return {"state": state, "param_groups": groups}

    def _loaded(self, name: str, p: Tensor, found: State, settings: dict[str, Any], move_to_device: bool) -> State:
        found = {key: value for key, value in found.items() if key != WRAPPER} | found.get(WRAPPER, {})
        if move_to_device:
            found = {k: v.to(p.device) if k in TENSOR_KEYS and isinstance(v, Tensor) else v for k, v in found.items()}
        form, shape = self._form(p, settings), p.shape
        if sharding.is_sharded(p):
            found = sharding.local_state(name, self.rule, form, p, found)
            shape = sharding.local(p).shape
        else:
            found = sharding.unsharded(found)
        own = states.loaded(name, self.rule, form, shape, found)
        if settings["is_paged"] and move_to_device:
            own = to_paged_memory(own, p.device)
        others = {key: value for key, value in found.items() if key not in TENSOR_KEYS}
        return others | {"step": int(found["step"])} | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "state" in state:
            of = state["state"]
            for p, own in of.items():
                if isinstance(own, _Loaded):
                    of[p] = own.state
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)


def refuse_unless_off(**arguments: Any) -> None:
    """Raises ValueError for an argument of the public signature that is on, but that the step operators do not know."""
    for name, value in arguments.items():
        if value:
            raise ValueError(f"{name} is {value}, which the step operators do not know: leave it {type(value)()}")


def without_bits(init: Callable[..., None]) -> Callable[..., None]:
    """The `__init__` of a class that fixes the bits: the same one without `optim_bits`, also by position."""
    signature = inspect.signature(init)
    shorter = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "optim_bits"])

    @functools.wraps(init)
    def shorter_init(*args: Any, **kwargs: Any) -> None:
        given = shorter.bind(*args, **kwargs).arguments
        options = given.pop("options", {})
        init(**given, **options)

    shorter_init.__signature__ = shorter  # type: ignore[attr-defined]
    return shorter_init


def _key(override: dict[str, Any]) -> Any:
    """What tells overrides apart without reading tensors."""
    if not override:
        return None
    return tuple((name, id(v) if isinstance(v, Tensor) else repr(v)) for name, v in sorted(override.items()))


@dataclass
class _Alike:
    """Parameters for one dispatch, with their states, and what they share."""

    clock: Tensor
    override: dict[str, Any]
    members: list[tuple[Tensor, State]] = field(default_factory=list)


@dataclass
class _Loaded:
    """A state on its way through torch's `load_state_dict`, which would cast tensors to the parameter's dtype."""

    state: State


def _fill(bundles: Bundles, found: Iterable[_Alike]) -> None:
    clocks: dict[int, Tensor] = {}
    for alike in found:
        params: list[Any] = [p for p, _ in alike.members]
        grads: list[Any] = [p.grad for p in params]
        if sharding.is_imported() and any(map(sharding.is_sharded, params)):
            grads = [sharding.local(g, like=p) for p, g in zip(params, grads, strict=True)]
            params = [sharding.local(p) for p in params]
        bundles.params.extend(params)
        bundles.grads.extend(grads)
        own = alike.members[0][1]
        form = states.form_of(own)
        keys = ("state1", "state2", f"{form.scale}1", f"{form.scale}2", "unorm_vec", "gnorm_vec")
        lists: tuple[Any, ...] = bundles[2:8]
        for key, tensors in zip(keys, lists, strict=True):
            # Norms are in all states where they are in use, and may be left in some.
            everywhere = key in own and all(key in of for _, of in alike.members)
            tensors.extend([of[key] for _, of in alike.members] if everywhere else [None] * len(params))
        bundles.sizes.append(len(params))
        bundles.forms.append(form.name)
        bundles.qmap1.append(own.get("qmap1"))
        bundles.qmap2.append(own.get("qmap2"))
        bundles.steps.append(alike.clock)
        bundles.overridden.append(alike.override)
        clocks[id(alike.clock)] = alike.clock
    bundles.clocks.extend(clocks.values())


def _parameters_by_key(
    saved_groups: list[dict[str, Any]], groups: list[dict[str, Any]]
) -> Iterable[tuple[int, Tensor]]:
    for saved, group in zip(saved_groups, groups, strict=False):
        yield from zip(saved["params"], group["params"], strict=False)
