"""Which dimensions of hidden states hold outliers (LLM.int8(), arXiv:2208.07339), and layers that make use of it."""

from __future__ import annotations

from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["OutlierAwareLinear", "OutlierTracer", "find_outlier_dims"]

# Of activations: so large in so large a share of the rows, or so many standard deviations of spread above the mean.
LARGE, SHARE, ACTIVATION_ZSCORE = 6.0, 0.05, 3.0


def find_outlier_dims(
    weight: Tensor, reduction_dim: int = 0, zscore: float = 4.0, topk: int | None = None, rdm: bool = False
) -> Tensor:
    """The dimensions whose spread is far above that of the others, int64, ascending unless `topk` is given.

    weight: two-dimensional; reduction_dim: the one that the spread is taken over. zscore: standard deviations above the
    mean spread. topk: the so many of the largest spread instead, in that order; rdm: so many at random.

    Raises ValueError for rdm without topk.
    """
    if rdm:
        if topk is None:
            raise ValueError("rdm needs topk: how many dimensions to choose")
        return torch.randint(weight.shape[1 - reduction_dim], (topk,), device=weight.device)
    spread = weight.float().std(reduction_dim)
    if topk is not None:
        return spread.topk(topk).indices
    return torch.where((spread - spread.mean()) / spread.std() > zscore)[0]


class OutlierTracer:
    """Finds the outlier dimensions of the inputs of a model's linear layers during its first forward pass.

    For the first layer they are found from its input, for others from the columns of their weight, which learn to
    answer to them. `get_instance()` returns the one tracer of this process; `initialize(model)` starts it.
    """

    _instance: ClassVar[OutlierTracer | None] = None

    def __init__(self) -> None:
        raise RuntimeError("there is one OutlierTracer: call OutlierTracer.get_instance()")

    @classmethod
    def get_instance(cls) -> OutlierTracer:
        """The one of this process."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance._initialized = False
            cls._instance._forget()
        return cls._instance

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies of a model have copies of its hooks.
        return type(self).get_instance, ()

    def _forget(self) -> None:
        self._found: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._hooks: WeakKeyDictionary[nn.Module, RemovableHandle] = WeakKeyDictionary()

    def initialize(self, model: nn.Module) -> None:
        """Forgets what was found, and looks at each linear layer of a model in its next forward pass."""
        for hook in self._hooks.values():
            hook.remove()
        self._forget()
        self._initialized = True
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                self._hooks[layer] = layer.register_forward_pre_hook(self.observe, with_kwargs=True)

    def is_initialized(self) -> bool:
        """True after `initialize`."""
        return self._initialized

    def get_outliers(self, weight: Tensor) -> Tensor | None:
        """The outlier dimensions of the input of the layer with this weight; None where that was not seen."""
        found: Tensor | None = self._found.get(weight)
        return found

    @torch.no_grad()
    def observe(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any] | None = None) -> None:
        """The hook before the first forward pass of each layer."""
        hook = self._hooks.pop(layer, None)
        if hook is not None:
            hook.remove()
        weight: Any = layer.weight
        if weight not in self._found:  # layers may share one
            x = (*inputs, *(named or {}).values())[0]
            self._found[weight] = find_outlier_dims(weight) if len(self._found) else _of_activations(x)


def _of_activations(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).float()
    by_spread = find_outlier_dims(rows, reduction_dim=0, zscore=ACTIVATION_ZSCORE)
    by_size = torch.where((rows.abs() > LARGE).float().mean(0) > SHARE)[0]
    return torch.cat([by_spread, by_size]).unique()


class OutlierAwareLinear(nn.Linear):
    """Base of linear layers that treat the outlier dimensions of their input apart.

    A subclass has `quantize_weight(w, outlier_idx)`, which returns the weight to keep, and `forward_with_outliers(x,
    outlier_idx)`. Both are called once the dimensions are known: after a forward pass of the model with
    `OutlierTracer.get_instance().initialize(model)`.

    forward raises RuntimeError where the tracer has not seen this layer.
    """

    def __init__(
        self, input_features: int, output_features: int, bias: bool = True, device: torch.device | str | None = None
    ) -> None:
        super().__init__(input_features, output_features, bias, device)
        self.outlier_dim: Tensor | None = None
        self.is_quantized = False

    def forward_with_outliers(self, x: Tensor, outlier_idx: Tensor) -> Tensor:
        """The product, with the outlier dimensions apart."""
        raise NotImplementedError(f"{type(self).__name__} has no forward_with_outliers(x, outlier_idx)")

    def quantize_weight(self, w: Tensor, outlier_idx: Tensor) -> Tensor:
        """The weight to keep."""
        raise NotImplementedError(f"{type(self).__name__} has no quantize_weight(w, outlier_idx)")

    def forward(self, x: Tensor) -> Tensor:
        if self.outlier_dim is None:
            self.outlier_dim = OutlierTracer.get_instance().get_outliers(self.weight)
        if self.outlier_dim is None:
            raise RuntimeError(
                "the outlier dimensions of this layer are not known: call "
                "OutlierTracer.get_instance().initialize(model) before a forward pass of the model"
            )
        if not self.is_quantized:
            with torch.no_grad():
                self.weight.copy_(self.quantize_weight(self.weight, self.outlier_dim))
            self.is_quantized = True
        return self.forward_with_outliers(x, self.outlier_dim)
