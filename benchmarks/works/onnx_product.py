"""onnxruntime's products with a 4-bit weight, each as a model of one node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..work import Run

__all__ = ["normal_float", "uniform"]


def uniform(x: Tensor, packed: Tensor, scales: Tensor, accuracy_level: int) -> Run:
    """`MatMulNBits`: uniform codes with the zero at 8. packed: uint8 `[N, blocks of a row, bytes of a block]`.

    accuracy_level: 0 computes in fp32, 4 rounds the input to int8.
    """
    N, blocks, size = packed.shape
    attributes = {"K": 2 * blocks * size, "N": N, "bits": 4, "block_size": 2 * size, "accuracy_level": accuracy_level}
    return _run("MatMulNBits", x, N, {"B": packed, "scales": scales}, attributes)


def normal_float(x: Tensor, packed: Tensor, absmax: Tensor, shape: tuple[int, ...], blocksize: int) -> Run:
    """`MatMulBnb4` with NF4 codes as bnb_core and bitsandbytes pack them."""
    N, K = shape
    attributes = {"K": K, "N": N, "block_size": blocksize, "quant_type": 1}
    return _run("MatMulBnb4", x, N, {"B": packed, "absmax": absmax}, attributes)


def _run(op: str, x: Tensor, N: int, weight: dict[str, Tensor], attributes: dict[str, int]) -> Run:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    def matrix(name: str, columns: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [len(x), columns])

    node = helper.make_node(op, ["x", *weight], ["y"], domain="com.microsoft", **attributes)
    constants = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in weight.items()]
    graph = helper.make_graph([node], "product", [matrix("x", x.shape[1])], [matrix("y", N)], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads spin on after a run, which would cost the next contestant a core.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])
