"""Embeddings: with 32-bit optimizer state, and with vectors in 8 or 4 bits."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding, layer_norm

from bnb_core.ops_registry.formats import QUANT_TYPES
from bnb_core.optim.overrides import GlobalOptimManager
from bnb_core.quant_state import QuantState

from .layer import Int8Layer, QuantizedLayer
from .params import Int8Params, Params4bit

__all__ = ["Embedding", "Embedding4bit", "Embedding8bit", "EmbeddingFP4", "EmbeddingNF4", "StableEmbedding"]

Device = torch.device | str | int | None


class Embedding(torch.nn.Embedding):
    """An embedding for training with 8-bit optimizers: its own state stays in 32 bits (arXiv:2110.02861).

    Arguments as in torch. The vectors start from a Xavier uniform distribution.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        _freeze: bool = False,
    ) -> None:
        how = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        super().__init__(num_embeddings, embedding_dim, *how, _weight, _freeze, device, dtype)
        self._keep_32_bits()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._keep_32_bits()

    def _keep_32_bits(self) -> None:
        GlobalOptimManager.get_instance().register_module_override(self, "weight", {"optim_bits": 32})

    def reset_parameters(self) -> None:
        """New vectors, zero for the padding."""
        torch.nn.init.xavier_uniform_(self.weight)
        self._fill_padding_idx_with_zero()


class StableEmbedding(Embedding):
    """`Embedding` with layer normalization, computed in fp32 (arXiv:2110.02861).

    It makes training with 8-bit optimizers stable; add position embeddings after it. The result has the dtype of the
    vectors.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        _freeze: bool = False,
    ) -> None:
        how = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        super().__init__(num_embeddings, embedding_dim, *how, _weight, device, dtype, _freeze)
        self.norm = torch.nn.LayerNorm(embedding_dim, device=device)

    def forward(self, input: Tensor) -> Tensor:
        norm = self.norm
        vectors = super().forward(input).float()
        result = layer_norm(vectors, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        return result.to(self.weight.dtype)


class Embedding8bit(Int8Layer, torch.nn.Embedding):
    """An embedding whose vectors are quantized to int8, one scale each, on the first move to a device.

    dtype: of the vectors before they are quantized, and of the result. There is no gradient.

    forward raises RuntimeError while the vectors are not quantized.
    """

    weight: Int8Params

    def __init__(
        self, num_embeddings: int, embedding_dim: int, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, device=device, dtype=dtype)
        self.dtype = self.weight.dtype
        self.weight = Int8Params(self.weight.data, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        weight = self._operand("weight")
        scales = getattr(weight, "SCB", None)
        if scales is None:
            scales = self._statistics("SCB", Int8Params)
        chosen = embedding(input, weight), embedding(input, scales.unsqueeze(-1)).squeeze(-1)
        codes, scale = chosen[0].reshape(-1, self.embedding_dim), chosen[1].reshape(-1)
        rows = torch.ops.bnb_core.int8_vectorwise_dequant.default(codes, scale)
        return rows.to(self.dtype).reshape(*input.shape, self.embedding_dim)


class Embedding4bit(QuantizedLayer, torch.nn.Embedding):
    """An embedding whose vectors are quantized to 4 bits on the first move to a device (arXiv:2305.14314).

    dtype: of the vectors before they are quantized, and of the result. quant_type: `nf4` or `fp4`. quant_storage: the
    dtype the packed codes are viewed as. Only the vectors that are asked for are dequantized. There is no gradient.

    forward raises RuntimeError while the vectors are not quantized, IndexError for an index that is out of range.
    Warns where the block size does not divide embedding_dim: neighbours then share a scale.
    """

    weight: Params4bit

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype | None = None,
        quant_type: str = "fp4",
        quant_storage: torch.dtype = torch.uint8,
        device: Device = None,
    ) -> None:
        if quant_type not in QUANT_TYPES:
            raise ValueError(f"quant_type is {quant_type!r}, expected one of {', '.join(QUANT_TYPES)}")
        super().__init__(num_embeddings, embedding_dim, device=device, dtype=dtype)
        self.dtype = self.weight.dtype
        self.weight = Params4bit(self.weight.data, quant_type=quant_type, quant_storage=quant_storage)
        if embedding_dim % self.weight.blocksize:
            warnings.warn(
                f"embedding_dim is {embedding_dim}, no multiple of the block size {self.weight.blocksize}: blocks "
                "straddle vectors, and neighbours share a scale",
                stacklevel=2 if type(self) is Embedding4bit else 3,
            )

    @property
    def quant_state(self) -> QuantState | None:
        """The statistics of the vectors; None before they are quantized."""
        return getattr(self.weight, "quant_state", None)

    def forward(self, input: Tensor) -> Tensor:
        weight = self._operand("weight")
        state = getattr(weight, "quant_state", None)
        if state is None:
            state = self._statistics("quant_state", Params4bit)
        shape, blocksize, quant_type = state.four_bit_format()
        absmax, *nested = state.statistics()
        return torch.ops.bnb_core.embedding_4bit.default(
            input, weight, list(shape), absmax, blocksize, quant_type, self.dtype, *nested
        )


class _EmbeddingOfType(Embedding4bit):
    """`Embedding4bit` whose type is that of the class."""

    fixed_type: ClassVar[str]

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype | None = None,
        quant_storage: torch.dtype = torch.uint8,
        device: Device = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, dtype, self.fixed_type, quant_storage, device)


class EmbeddingNF4(_EmbeddingOfType):
    """`Embedding4bit` with the NF4 type."""

    fixed_type = "nf4"


class EmbeddingFP4(_EmbeddingOfType):
    """`Embedding4bit` with the FP4 type."""

    fixed_type = "fp4"
