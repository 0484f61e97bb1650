"""The experts of a mixture-of-experts block with weights in 4 bits, all in one dispatch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import silu

from bnb_core.autograd import grouped_matmul_4bit
from bnb_core.quant_state import QuantState

from .layer import QuantizedLayer
from .params import Params4bit

__all__ = ["Experts4bit", "GroupedLinear4bit"]


class GroupedLinear4bit(QuantizedLayer):
    """Linear layers of one shape, each for its own group of rows, with 4-bit weights (QLoRA, arXiv:2305.14314).

    The weight is `[groups, output_features, input_features]`, the bias `[groups, output_features]`. They are quantized
    on the first move to a device. compute_dtype, compress_statistics, quant_type, quant_storage: as in `Linear4bit`.

    forward raises RuntimeError while the weight is not quantized, or where its block size does not divide the weight
    of one group.
    """

    weight: Params4bit

    def __init__(
        self,
        groups: int,
        input_features: int,
        output_features: int,
        bias: bool = True,
        compute_dtype: torch.dtype | None = None,
        compress_statistics: bool = True,
        quant_type: str = "nf4",
        quant_storage: torch.dtype = torch.uint8,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        bound = input_features**-0.5
        value = torch.empty(groups, output_features, input_features, device=device).uniform_(-bound, bound)
        self.weight = Params4bit(
            value, compress_statistics=compress_statistics, quant_type=quant_type, quant_storage=quant_storage
        )
        own = torch.empty(groups, output_features, device=device).uniform_(-bound, bound) if bias else None
        self.bias = None if own is None else torch.nn.Parameter(own)
        self.compute_dtype = compute_dtype

    @property
    def quant_state(self) -> QuantState | None:
        """The statistics of the weight; None before it is quantized."""
        return getattr(self.weight, "quant_state", None)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x: rows `[T, input_features]`, sorted by group. ends: `[groups]`, the row after the last one of each."""
        weight = self._operand("weight")
        state = getattr(weight, "quant_state", None)
        if state is None:
            state = self._statistics("quant_state", Params4bit)
        dtype = x.dtype if self.compute_dtype is None else self.compute_dtype
        return grouped_matmul_4bit(x.to(dtype), weight, state, ends, self.bias).to(x.dtype)


def _gated_silu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


class Experts4bit(torch.nn.Module):
    """Experts of two layers with a gate between, `down(activation(gate_up(x)))`, with weights in 4 bits.

    gate_up_proj: `[num_experts, 2 * intermediate_size, hidden_size]`. down_proj: `[num_experts, hidden_size,
    intermediate_size]`. activation: of `[…, 2 * intermediate_size]`, whose first half is the gate, to `[…,
    intermediate_size]`; by default `silu(gate) * up`. The others as in `Linear4bit`. Weights in 16 or 32 bits are
    loaded before the first move to a device, as `{"gate_up_proj.weight": …, "down_proj.weight": …}`.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        bias: bool = False,
        activation: Callable[[Tensor], Tensor] = _gated_silu,
        compute_dtype: torch.dtype | None = None,
        compress_statistics: bool = True,
        quant_type: str = "nf4",
        quant_storage: torch.dtype = torch.uint8,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        how = (bias, compute_dtype, compress_statistics, quant_type, quant_storage, device)
        self.gate_up_proj = GroupedLinear4bit(num_experts, hidden_size, 2 * intermediate_size, *how)
        self.down_proj = GroupedLinear4bit(num_experts, intermediate_size, hidden_size, *how)
        self.activation = activation

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of what the chosen experts make of each row.

        hidden_states: `[T, hidden_size]`. top_k_index: int64 `[T, k]`, the experts of each row; negative, or
        num_experts and above, for none. top_k_weights: `[T, k]`. Returns `[T, hidden_size]`, summed in a fixed order.

        Raises ValueError where the sizes do not belong together.
        """
        rows, chosen = top_k_index.shape
        if rows != hidden_states.shape[0] or top_k_weights.shape != top_k_index.shape:
            raise ValueError(
                f"hidden_states has shape {tuple(hidden_states.shape)}, top_k_index {tuple(top_k_index.shape)} and "
                f"top_k_weights {tuple(top_k_weights.shape)}, expected [T, hidden_size], [T, k] and [T, k]"
            )
        index = torch.where(top_k_index < 0, self.num_experts, top_k_index)
        by_expert, order = index.flatten().sort(stable=True)
        ends = torch.searchsorted(by_expert, torch.arange(self.num_experts, device=order.device), right=True)
        hidden = self.activation(self.gate_up_proj(hidden_states[order // chosen], ends))
        result = self.down_proj(hidden, ends)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        of_rows = result[back].view(rows, chosen, result.shape[1])
        return (of_rows * top_k_weights.unsqueeze(-1)).sum(1).to(hidden_states.dtype)
