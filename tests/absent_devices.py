"""What can be tried for devices that are not here, on FakeTensors: those have a device's name and no data.

    python tests/absent_devices.py xpu hpu

Prints JSON of each device: the errors of the checks that fail, and the kernels that it would get. No gradient is tried:
autograd asks the device.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_map_only

from bnb_core import autograd, nn, ops_registry
from bnb_core.conformance.attempts import dtype_of
from bnb_core.ops_registry import OPS, Op
from bnb_core.ops_registry.cases import Case, fresh, tensors
from bnb_core.quant_state import QuantState


class Absent:
    """What torch asks of the module of a device."""

    @staticmethod
    def is_available() -> bool:
        return False

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False


# What is registered with it is gone when it is.
anything = torch.library.Library("_", "IMPL")


def announce(device: str) -> None:
    """Makes torch know the name: Gaudi's software and packages of other vendors do this."""
    if device == "hpu":
        torch._register_device_module(device, Absent)
    elif device not in ("cuda", "xpu", "mps"):
        torch.utils.rename_privateuse1_backend(device)
        torch._register_device_module(device, Absent)
        autograd_key = "AutogradPrivateUse1"
        if not torch._C._dispatch_has_backend_fallback(getattr(torch._C.DispatchKey, autograd_key)):
            # Older torch leaves to those packages what autograd makes of an operator without a formula.
            anything.fallback(torch.library.fallthrough_kernel, autograd_key)


class Checks:
    """The checks of a device; each raises AssertionError, or what it finds."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.mode = FakeTensorMode(shape_env=ShapeEnv())

    def there(self, value: Any) -> Any:
        """The tensors of a value as those of the device; one that is on meta stays there."""

        def fake(tensor: Tensor) -> Tensor:
            device = self.device if tensor.device.type == "cpu" else tensor.device
            with self.mode:
                return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

        return tree_map_only(Tensor, fake, value)

    def fakes(self) -> None:
        """Each operator answers with the shapes and dtypes that it has on the CPU, on the device of its inputs."""
        for op in OPS.values():
            for case in calls(op):
                self._same(op, op.complete(case.args))
        assert not self._ran()

    def _same(self, op: Op, args: tuple[Any, ...]) -> None:
        copies, given = fresh(args), self.there(args)
        real = op.outcome(_overload(op)(*copies), copies)
        with self.mode:
            made = op.outcome(_overload(op)(*given), given)
        assert len(made) == len(real), op.name
        for got, want in zip(tensors(made), tensors(real), strict=True):
            assert (got.dtype, got.device.type) == (want.dtype, self.device), (op.name, got, want)
            # A size that depends on data is a symbol without a value.
            known = [a for a, b in zip(got.shape, want.shape, strict=True) if isinstance(a, int) and a != b]
            assert not known, (op.name, got, want)
        if op.out:
            with self.mode:
                assert _overload(op, "out")(*given, *self.there(real[: len(op.out)])) is None

    def refusals(self) -> None:
        """What an operator's check refuses is refused with its sentence."""
        for op in OPS.values():
            for bad in op.each_bad_case("cpu"):
                try:
                    with self.mode:
                        _overload(op)(*self.there(bad.args))
                except RuntimeError as error:
                    said = str(error)
                else:
                    said = "nothing"
                named = said.startswith(f"bnb_core::{op.name}: ")
                assert named and re.search(bad.error, said), (op.name, bad.name, said)
        assert not self._ran()

    def layers(self) -> None:
        """A layer whose codes and scales are on the device answers there."""
        for make, given in (
            (lambda: nn.LinearNF4(64, 32), torch.randn(3, 64)),
            (lambda: nn.LinearFP4(64, 32, compress_statistics=False), torch.randn(3, 64)),
            (lambda: nn.Linear8bitLt(64, 32, has_fp16_weights=False, threshold=6.0), torch.randn(3, 64)),
            (lambda: nn.EmbeddingNF4(8, 64), torch.tensor([1, 7])),
            (lambda: nn.Embedding8bit(8, 64), torch.tensor([1, 7])),
        ):
            layer = make().to("cpu")
            want = layer(given)
            # A subclass of a FakeTensor cannot be made: plain codes take the weight's place, with its statistics.
            weight, codes = layer.weight, self._parameter(layer.weight)
            for name in ("quant_state", "SCB"):
                if (statistics := getattr(weight, name, None)) is not None:
                    state = isinstance(statistics, QuantState)
                    setattr(codes, name, statistics.map(self.there) if state else self.there(statistics))
            layer._parameters["weight"] = codes
            if (bias := getattr(layer, "bias", None)) is not None:
                layer._parameters["bias"] = self._parameter(bias)
            with self.mode, torch.no_grad():
                got = layer(self.there(given))
            assert (got.device.type, got.dtype, got.shape) == (self.device, want.dtype, want.shape), layer
        assert not self._ran()

    def _parameter(self, tensor: Tensor) -> torch.nn.Parameter:
        # With a gradient, autograd would look for the device.
        return torch.nn.Parameter(self.there(tensor.data), requires_grad=False)

    def export(self) -> None:
        """A 4-bit and an int8 layer in one program, for any number of rows, with all of it on the device."""
        model = Exported(self.there)
        with self.mode:
            rows = torch.export.Dim("rows", min=2, max=4096)
            x = self.there(torch.randn(3, 64))
            program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: rows}})
        nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        called = Counter(str(node.target) for node in nodes)
        assert called["bnb_core.gemm_4bit.default"] == called["bnb_core.int8_linear.default"] == 1, called
        values = [value for node in program.graph.nodes for value in tensors([node.meta.get("val")])]
        assert {value.device.type for value in values} == {self.device}, values
        assert not isinstance(values[-1].shape[0], int), "the number of rows is a symbol"
        assert not self._ran()

    def rows(self) -> None:
        """The backend's table is accepted, where there is one."""
        here = self.device in ops_registry.devices()
        if not here and find_spec(f"bnb_core.backends.{self.device}") is not None:
            backend = importlib.import_module(f"bnb_core.backends.{self.device}")
            # Whether torch and Triton have here what they need is another question.
            rows = (replace(row, unavailable=None, backend=backend.__name__) for row in backend.KERNELS)
            ops_registry.register_kernels(tuple(rows))

    def first(self) -> dict[str, str]:
        """Operator → the kernel that comes first."""
        return {op: ops_registry.kernels_for(op, self.device)[0].name for op in OPS}

    def chosen(self) -> dict[str, list[str]]:
        """Operator with limits → the kernels that its cases run."""
        found: dict[str, list[str]] = {}
        for op in ("dequantize_4bit", "gemm_4bit", "embedding_4bit", "int8_mm", "int8_scaled_mm"):
            calls = [self.there(OPS[op].complete(case.args)) for case in OPS[op].each_case("cpu")]
            with self.mode, ops_registry.fallback("allow"):
                found[op] = sorted({ops_registry.chosen_kernel(op, *args).name for args in calls})
        return found

    def _ran(self) -> list[str]:
        """The kernels that were called for the device; none can be, without data."""
        return [kernel for _, where, kernel in ops_registry.kernel_counts() if where == self.device]


class Exported(torch.nn.Module):
    """What the layers compute, of buffers."""

    def __init__(self, there: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        first = nn.LinearNF4(64, 32).to("cpu").weight
        second = nn.Linear8bitLt(32, 16, has_fp16_weights=False, threshold=6.0).to("cpu").weight
        self.state = first.quant_state.map(there)
        values = {"packed": first.data, "CB": second.data, "SCB": second.SCB, "bias": torch.randn(16)}
        for name, value in values.items():
            self.register_buffer(name, there(value))

    def forward(self, x: Tensor) -> Tensor:
        x = autograd.matmul_4bit(x, self.packed, self.state)
        return autograd.int8_linear(x, self.CB, self.SCB, self.bias, 6.0)


def _overload(op: Op, name: str = "default") -> Any:
    return getattr(getattr(torch.ops.bnb_core, op.name), name)


def calls(op: Op) -> Iterator[Case]:
    """A case of each dtype, and an empty one."""
    seen = set()
    for case in op.each_case("cpu"):
        kind = dtype_of(op, case.args) if all(tensor.numel() for tensor in tensors(case.args)) else "empty"
        if kind not in seen:
            seen.add(kind)
            yield case


def report(device: str) -> dict[str, Any]:
    announce(device)
    checks, errors = Checks(device), {}
    for check in (checks.rows, checks.fakes, checks.refusals, checks.layers, checks.export):
        try:
            check()
        except Exception:  # noqa: BLE001  what is wrong is told, whatever it is
            errors[check.__name__] = traceback.format_exc()
    return {"errors": errors, "first": checks.first(), "chosen": checks.chosen()}


if __name__ == "__main__":
    warnings.simplefilter("error")
    # Dynamo of torch 2.6 makes an autograd.Function, of which torch warns.
    warnings.filterwarnings("ignore", ".* should not be instantiated", DeprecationWarning)
    json.dump({device: report(device) for device in sys.argv[1:]}, sys.stdout)
