"""Linear layers with a weight in 4 bits, next to the layers that they replace and to other packages' 4-bit ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bnb_core.nn import LinearNF4

from ..work import Contestant, Family, Run, Target, Work
from . import onnx_product
from .common import BITSANDBYTES, OURS, torchao_nf4
from .sizes import DTYPES, MODEL_SHAPES, Sizes

__all__ = ["families"]

BLOCKSIZE = 64
TORCH = "torch linear"
INT4PACK = "torch int4pack"
ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Inputs:
    """Rows `[M, K]`, and a weight `[N, K]` in the same dtype."""

    x: Tensor
    W: Tensor


def _inputs(M: int, N: int, K: int, dtype: torch.dtype) -> Callable[[], Inputs]:
    return lambda: Inputs(torch.randn(M, K).to(dtype), (0.02 * torch.randn(N, K)).to(dtype))


def _ours(inputs: Inputs) -> Run:
    N, K = inputs.W.shape
    layer = LinearNF4(K, N, bias=False, compute_dtype=inputs.W.dtype, compress_statistics=False)
    layer.load_state_dict({"weight": inputs.W})
    layer.to("cpu")
    return lambda: layer(inputs.x)


def _torch(inputs: Inputs) -> Run:
    return lambda: torch.nn.functional.linear(inputs.x, inputs.W)


def _bitsandbytes(inputs: Inputs) -> Run:
    from bitsandbytes.nn import LinearNF4, Params4bit

    N, K = inputs.W.shape
    layer = LinearNF4(K, N, bias=False, compute_dtype=inputs.W.dtype, compress_statistics=False)
    layer.weight = Params4bit(inputs.W, requires_grad=False, compress_statistics=False, quant_type="nf4")
    layer.to("cpu").eval()
    return lambda: layer(inputs.x)


def _torchao(inputs: Inputs) -> Run:
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import linear_nf4

    weight = torchao_nf4(inputs.W, BLOCKSIZE)()
    return lambda: linear_nf4(inputs.x, weight)


def _int4pack(inputs: Inputs) -> Run:
    codes, scales = uniform_codes(inputs.W.float())
    N, K = inputs.W.shape
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 2)
    scales = scales.reshape(N, K // BLOCKSIZE).t()
    scales_and_zeros = torch.stack([scales, torch.zeros_like(scales)], dim=-1).to(inputs.x.dtype).contiguous()
    op = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda: op(inputs.x, packed, BLOCKSIZE, scales_and_zeros)


def _onnx_uniform(accuracy_level: int, inputs: Inputs) -> Run:
    codes, scales = uniform_codes(inputs.W.float())
    low_first = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(len(codes), -1, BLOCKSIZE // 2)
    return onnx_product.uniform(inputs.x.float(), low_first, scales, accuracy_level)


def _onnx_nf4(inputs: Inputs) -> Run:
    packed, absmax = torch.ops.bnb_core.quantize_4bit(inputs.W, BLOCKSIZE, "nf4", torch.uint8)
    return onnx_product.normal_float(inputs.x.float(), packed.flatten(), absmax, tuple(inputs.W.shape), BLOCKSIZE)


def uniform_codes(W: Tensor) -> tuple[Tensor, Tensor]:
    """Codes 0…15 uint8 like W, of which 8 is zero, and a scale for each block of a row: the peers' own format."""
    blocks = W.reshape(-1, BLOCKSIZE)
    scales = blocks.abs().amax(1) / 7.5
    codes = (blocks / scales[:, None]).round().add(8).clamp(0, 15)
    return codes.to(torch.uint8).reshape(W.shape), scales


# Ours differs from a weight in full by the error of 4 bits, about 0.1, and from other 4-bit codes by that of both.
ROUNDING, QUANTIZATION = 0.02, 0.25
CONTESTANTS = (
    Contestant(OURS, _ours),
    Contestant(TORCH, _torch, QUANTIZATION),
    Contestant(BITSANDBYTES, _bitsandbytes, ROUNDING, BITSANDBYTES, threads_of=BITSANDBYTES),
    Contestant("torchao", _torchao, 0.05, "torchao"),
    Contestant(INT4PACK, _int4pack, QUANTIZATION),
)
# Its products on a CPU are in fp32.
ONNX = (
    Contestant(ONNXRUNTIME, partial(_onnx_uniform, 0), QUANTIZATION, ONNXRUNTIME, threads_of=ONNXRUNTIME),
    Contestant("onnxruntime NF4", _onnx_nf4, ROUNDING, ONNXRUNTIME, threads_of=ONNXRUNTIME),
    Contestant("onnxruntime int8", partial(_onnx_uniform, 4), QUANTIZATION, ONNXRUNTIME, threads_of=ONNXRUNTIME),
)
# Int8 activations are not of like accuracy: no target.
LIKE_ACCURACY = (BITSANDBYTES, "torchao", INT4PACK, ONNXRUNTIME, "onnxruntime NF4")
TARGETS = (Target(TORCH, 1), Target(LIKE_ACCURACY, 1, label="each 4-bit peer"))


def families(sizes: Sizes) -> list[Family]:
    """A square weight at each number of rows, and weights of models at few and many; bf16 and fp32."""

    def work(M: int, shape: tuple[int, int], dtype: str) -> Work:
        K, N = map(sizes.width, shape)
        name = f"linear4bit/{K}x{N}/M={M}/{dtype}"
        return Work(name, _inputs(M, N, K, DTYPES[dtype]), (*CONTESTANTS, *ONNX), TARGETS)

    return [
        Family(
            f"4-bit linear layer, {dtype}, NF4 in blocks of {BLOCKSIZE}",
            [work(M, (4096, 4096), dtype) for M in (1, 4, 16, 64, 256)]
            + [work(M, shape, dtype) for shape in MODEL_SHAPES for M in (1, 16, 256)],
        )
        for dtype in ("bf16", "fp32")
    ]
