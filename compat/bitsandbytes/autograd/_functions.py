"""Products with quantized weights, and what scripts find beside them."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

import torch
from torch import Tensor

import bnb_core
from bnb_core import QuantState, matmul, matmul_4bit
from bnb_core.nn.linear8bit import LayerState

__all__ = [
    "GlobalOutlierPooler",
    "MatMul4Bit",
    "MatMul8bitFp",
    "MatMul8bitLt",
    "MatmulLtState",
    "matmul",
    "matmul_4bit",
]


class MatmulLtState(bnb_core.MatmulLtState, metaclass=ABCMeta):
    """`bnb_core.MatmulLtState` with the arguments and fields of the public class; those that bnb_core does not have
    are kept and have no effect. The `state` of a layer counts as one.
    """

    def __init__(
        self,
        force_no_igemmlt: bool = False,
        CB: Tensor | None = None,
        SB: Tensor | None = None,
        SCB: Tensor | None = None,
        SBt: Tensor | None = None,
        CBt: Tensor | None = None,
        subB: Tensor | None = None,
        outlier_pool: Any = None,
        idx: Tensor | None = None,
    ) -> None:
        super().__init__(CB, SCB)
        self.force_no_igemmlt = force_no_igemmlt
        self.SB, self.SBt, self.CBt, self.subB, self.idx = SB, SBt, CBt, subB, idx
        self.outlier_pool = outlier_pool
        self.has_accumulated_gradients = self.use_pool = False
        self.is_training = True


MatmulLtState.register(LayerState)


class GlobalOutlierPooler:
    """Collects the outlier columns of all layers of one width."""

    _instance: GlobalOutlierPooler | None = None

    def __init__(self) -> None:
        raise RuntimeError("there is one GlobalOutlierPooler: call GlobalOutlierPooler.get_instance()")

    @classmethod
    def get_instance(cls) -> GlobalOutlierPooler:
        """The one of this process."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance.initialize()
        return cls._instance

    def initialize(self) -> None:
        """Forgets everything."""
        self.outliers: set[int] = set()
        self.model_dim: int | None = None

    def add_outliers(self, outlier_idx: Tensor, feature_dim: int) -> None:
        """Adds columns. The first call sets the width; columns of other widths are left out."""
        if self.model_dim is None:
            self.model_dim = feature_dim
        if feature_dim == self.model_dim:
            self.outliers.update(outlier_idx.tolist())

    def get_current_outlier_idx(self) -> Tensor:
        """The columns collected, int64."""
        return torch.tensor(sorted(self.outliers), dtype=torch.int64)


class MatMul4Bit:
    """`matmul_4bit` under the name and argument order of the public autograd function."""

    @staticmethod
    def apply(
        A: Tensor,
        B: Tensor,
        out: Tensor | None = None,
        bias: Tensor | None = None,
        quant_state: QuantState | None = None,
    ) -> Tensor:
        if quant_state is None:
            raise ValueError("quant_state is missing: the statistics of B")
        return matmul_4bit(A, B, quant_state, out, bias)


class MatMul8bitLt:
    """`matmul` under the name and argument order of the public autograd function."""

    @staticmethod
    def apply(
        A: Tensor,
        B: Tensor,
        out: Tensor | None = None,
        bias: Tensor | None = None,
        state: bnb_core.MatmulLtState | None = None,
    ) -> Tensor:
        return matmul(A, B, out, state, bias=bias)


MatMul8bitFp = MatMul8bitLt
