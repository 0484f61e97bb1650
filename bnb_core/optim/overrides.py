"""Other hyperparameters for single parameters than their optimizer has."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["OVERRIDABLE", "GlobalOptimManager"]

OVERRIDABLE = (
    *("lr", "betas", "eps", "weight_decay", "alpha", "t_alpha", "t_beta3"),
    *("optim_bits", "min_8bit_size", "block_wise", "percentile_clipping", "max_unorm", "skip_zeros"),
)


class _Registered:
    """A parameter and its place in an optimizer; the override outlives it, for the one that takes its place."""

    def __init__(self, p: Tensor) -> None:
        self.parameter = weakref.ref(p)
        self.shape = p.shape
        self.override: dict[str, Any] = {}


class GlobalOptimManager:
    """Overrides hyperparameters of single parameters, in every optimizer of this process that has them.

    `get_instance()` returns the one there is. Parameters are held weakly. What decides the format of a state
    (`optim_bits`, `min_8bit_size`, `block_wise`) has to be said before the parameter's first step.

        manager = GlobalOptimManager.get_instance()
        manager.register_parameters(model.parameters())      # needed only if `.to()` is going to make new parameters
        manager.override_config(model.head.weight, "optim_bits", 32)
    """

    # Another text after each change. torch.compile guards on it; a number it would make a variable of the graph.
    changes: ClassVar[str] = "0"
    _instance: ClassVar[GlobalOptimManager | None] = None

    def __init__(self) -> None:
        raise RuntimeError("there is one GlobalOptimManager: call GlobalOptimManager.get_instance()")

    @classmethod
    def get_instance(cls) -> GlobalOptimManager:
        """The one of this process."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance.initialize()
        return cls._instance

    def initialize(self) -> None:
        """Forgets everything."""
        self._changed()
        self._by_tensor: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._by_place: dict[tuple[int, int], list[_Registered]] = {}
        self._modules: list[tuple[weakref.ref[nn.Module], str, dict[str, Any]]] = []

    @classmethod
    def _changed(cls) -> None:
        cls.changes = str(int(cls.changes) + 1)

    def register_parameters(self, params: Iterable[Any]) -> None:
        """Remembers the places of parameters, or of parameter groups, as an optimizer is going to be given them.

        An override of one of them then holds for the parameter of the same shape that `.to()` put in its place: for one
        that is not registered itself, once the one that was is gone. Raises TypeError for what is no tensor.
        """
        groups = list(params)
        if groups and not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        self._changed()
        for number, group in enumerate(groups):
            given = group["params"]
            group["params"] = given = [given] if isinstance(given, Tensor) else list(given)
            for i, p in enumerate(given):
                p = _tensor(p[1] if isinstance(p, tuple) else p)  # a tuple: named
                places = self._by_place.get((number, i), [])
                places = [place for place in places if place.parameter() is not None or place.shape != p.shape]
                if all(place.parameter() is not p for place in places):
                    places.append(_Registered(p))
                self._by_place[number, i] = places

    def override_config(
        self,
        parameters: Any,
        key: str | None = None,
        value: Any = None,
        key_value_dict: dict[str, Any] | None = None,
    ) -> None:
        """Overrides one hyperparameter, or those of a dict, of a parameter or of several.

        Raises ValueError for none or both of key and key_value_dict, and for a name that is no hyperparameter,
        TypeError for what is no tensor.
        """
        if (key is None) == (key_value_dict is None):
            raise ValueError("give either key and value, or key_value_dict")
        config = {key: value} if key is not None else dict(key_value_dict or {})
        _check(config)
        given = [parameters] if isinstance(parameters, Tensor) else [_tensor(p) for p in parameters]
        self._changed()
        for p in given:
            self._by_tensor[p] = self._by_tensor.get(p, {}) | config
            for places in self._by_place.values():
                for place in places:
                    if place.parameter() is p:
                        place.override |= config

    def register_module_override(self, module: nn.Module, param_name: str, config: dict[str, Any]) -> None:
        """Overrides hyperparameters of whatever parameter `module` has under a name when it is updated.

        `override_config` of the parameter itself goes before it. Raises ValueError for a name that is no
        hyperparameter, TypeError for what is no module.
        """
        _check(config)
        if not isinstance(module, nn.Module):
            raise TypeError(f"module is a {type(module).__name__}, expected a torch.nn.Module")
        self._changed()
        for known, name, before in self._modules:
            if known() is module and name == param_name:
                before.update(config)
                return
        self._modules.append((weakref.ref(module), param_name, dict(config)))

    def overrides(self, group: dict[str, Any], groups: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """For each parameter of one of an optimizer's groups what is overridden; None where nothing is.

        It holds as long as `changes` is the same, and the group's parameters.
        """
        number = next(n for n, other in enumerate(groups) if other is group)
        self._modules = [entry for entry in self._modules if entry[0]() is not None]
        of_modules: dict[int, dict[str, Any]] = {}
        for module, name, config in self._modules:
            p = getattr(module(), name, None)
            if p is not None:
                of_modules[id(p)] = of_modules.get(id(p), {}) | config
        found = [
            of_modules.get(id(p), {}) | (self._by_tensor.get(p) or self._of_place(p, number, i))
            for i, p in enumerate(group["params"])
        ]
        return found if any(found) else None

    def _of_place(self, p: Tensor, number: int, i: int) -> dict[str, Any]:
        places = self._by_place.get((number, i), [])
        if any(place.parameter() is p for place in places):
            return {}
        gone = [place for place in places if place.parameter() is None and place.shape == p.shape]
        return gone[-1].override if gone else {}


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"parameters hold a {type(value).__name__}, expected tensors")
    return value


def _check(config: dict[str, Any]) -> None:
    unknown = [str(name) for name in config if name not in OVERRIDABLE]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} cannot be overridden; what can is {', '.join(OVERRIDABLE)}")
