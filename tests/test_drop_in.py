"""The distribution `bitsandbytes` of compat/: the public names over bnb_core."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import inspect
import io
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import peers
import pytest
import torch
from optimizers import parameters, train
from torch import Tensor, nn

import bnb_core
from bnb_core import functional as F
from bnb_core import ops_registry
from bnb_core.ops_registry import paging

NAMES = (Path(__file__).parent / "bitsandbytes_names.txt").read_text().splitlines()

# Names of the public package that the drop-in does not have, with the reason.
ABSENT = {
    "bitsandbytes.cextension.get_available_cuda_binary_versions": "looks for its own libraries",
    "bitsandbytes.cextension.get_cuda_bnb_library_path": "looks for its own libraries",
    "bitsandbytes.cextension.get_xpu_bnb_library_path": "looks for its own libraries",
    "bitsandbytes.cextension.parse_cuda_version": "looks for its own libraries",
    "bitsandbytes.consts.NONPYTORCH_DOC_URL": "a page of its own",
    "bitsandbytes.consts.PACKAGE_GITHUB_URL": "a page of its own",
}


@pytest.fixture(autouse=True, scope="module")
def bnb() -> ModuleType:
    return peers.drop_in()


def named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", NAMES)
def test_a_public_name_is_there_with_its_arguments(line: str) -> None:
    path, _, rest = line.partition("(")
    if path in ABSENT:
        with pytest.raises(AttributeError):
            named(path)
        return
    value = named(path)
    if not rest:
        return
    wanted = [name for name in rest[:-1].split(", ") if name and not name.startswith("**")]
    if "*args" in wanted:  # of an autograd function, which is called by `apply`
        assert callable(value.apply)
        return
    ours = inspect.signature(value).parameters
    takes_rest = any(p.kind is p.VAR_POSITIONAL for p in ours.values())
    for got, want in zip(ours.values(), wanted, strict=False):
        if got.kind is got.VAR_POSITIONAL and got.name != want.strip("*"):
            break
        assert got.name == want.strip("*")
    assert takes_rest or len(ours) >= len(wanted)


def test_the_distribution_is_what_integrations_ask_for(bnb: ModuleType) -> None:
    version = importlib.metadata.version("bitsandbytes")
    assert version == bnb.__version__
    assert tuple(map(int, version.partition("+")[0].split("."))) >= (0, 49, 2)
    assert importlib.util.find_spec("bitsandbytes") is not None
    assert "multi_backend" in bnb.features
    assert bnb.supported_torch_devices == set(ops_registry.available_devices())


def test_layers_and_parameters_are_those_of_bnb_core(bnb: ModuleType) -> None:
    for name in set(bnb.nn.__all__) & set(bnb.nn.modules.__all__):
        assert getattr(bnb.nn, name) is getattr(bnb.nn.modules, name) is getattr(bnb_core.nn, name)
    older = bnb.nn.triton_based_modules
    assert older.SwitchBackLinear is bnb.nn.SwitchBackLinear is bnb_core.nn.SwitchBackLinear
    assert older.SwitchBackLinearGlobalMemEfficient(8, 8).mem_efficient


def test_import_does_nothing_but_import() -> None:
    code = "import torch, bitsandbytes; print(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_command_says_what_is_there_and_checks_it() -> None:
    done = subprocess.run([sys.executable, "-m", "bitsandbytes"], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"bitsandbytes {importlib.metadata.version('bitsandbytes')}")
    assert "bnb_core" in done.stdout


# -- operators ---------------------------------------------------------------------------------------------------------


def four_bit(device: torch.device, quant_type: str = "nf4") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(24, 64, generator=generator).to(device)
    x = torch.randn(3, 64, generator=generator).to(device)
    packed, absmax = torch.ops.bitsandbytes.quantize_4bit(W, 64, quant_type, torch.uint8)
    return x, packed, absmax, F.get_4bit_type(quant_type, device)


def test_operators_are_those_of_bnb_core(bnb: ModuleType, device: torch.device) -> None:
    x, packed, absmax, _ = four_bit(device)
    theirs, ours = torch.ops.bitsandbytes, torch.ops.bnb_core
    for a, b in zip(
        ours.quantize_4bit(x, 64, "nf4", torch.uint8), theirs.quantize_4bit(x, 64, "nf4", torch.uint8), strict=True
    ):
        assert torch.equal(a, b)
    weight = (packed, (24, 64), absmax, 64, "nf4")
    assert torch.equal(theirs.gemm_4bit(x, *weight), ours.gemm_4bit(x, *weight))
    codes = torch.randint(-127, 128, (5, 64), dtype=torch.int8, device=device)
    out = torch.empty(5, 5, dtype=torch.int32, device=device)
    theirs.int8_linear_matmul.out(codes, codes, out)
    assert torch.equal(out, ours.int8_mm(codes, codes))
    assert torch.equal(theirs.int8_linear_matmul(codes, codes), out)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_gemv_tells_the_type_from_the_code(bnb: ModuleType, quant_type: str, device: torch.device) -> None:
    x, packed, absmax, code = four_bit(device, quant_type)
    want = torch.ops.bnb_core.gemm_4bit(x[:1], packed, (24, 64), absmax, 64, quant_type)
    got = torch.ops.bitsandbytes.gemv_4bit(x[:1], packed, (24, 64), absmax, code, 64)
    assert torch.equal(got, want)
    out = torch.empty_like(want)
    torch.ops.bitsandbytes.gemv_4bit.out(x[:1], packed, (24, 64), absmax, code, 64, out)
    assert torch.equal(out, want)
    with pytest.raises(RuntimeError, match="code holds the values of none of nf4, fp4"):
        torch.ops.bitsandbytes.gemv_4bit(x[:1], packed, (24, 64), absmax, code.flip(0), 64)


def test_operators_trace_into_those_of_bnb_core(bnb: ModuleType, device: torch.device) -> None:
    x, packed, absmax, code = four_bit(device)

    class Product(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            ops = torch.ops.bitsandbytes
            args = (packed, (24, 64), absmax)
            return ops.gemm_4bit(x, *args, 64, "nf4"), ops.gemv_4bit(x, *args, code, 64)

    program = torch.export.export(Product(), (x,)).run_decompositions()
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"bnb_core.gemm_4bit.default", "bitsandbytes.gemv_4bit.default"} <= called
    assert "bitsandbytes.gemm_4bit.default" not in called
    for got, want in zip(program.module()(x), Product()(x), strict=True):
        assert torch.equal(got, want)
    compiled = torch.compile(Product(), fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(x), Product()(x), strict=True):
        assert torch.equal(got, want)


# -- optimizers --------------------------------------------------------------------------------------------------------

OPTIMIZERS = sorted(set(bnb_core.optim.__all__) - {"GlobalOptimManager", "KBitOptimizer", "PytorchLARS", "create"})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_says_bitsandbytes_in_its_class(bnb: ModuleType, name: str) -> None:
    cls = getattr(bnb.optim, name)
    assert "bitsandbytes" in str(cls)
    assert issubclass(cls, getattr(bnb_core.optim, name))
    made = cls([nn.Parameter(torch.zeros(4))], lr=0.1)
    base = bnb.optim.optimizer
    states = ops_registry.OPTIMIZER_STATES[made.rule]
    assert isinstance(made, base.Optimizer8bit)
    assert isinstance(made, base.Optimizer2State) == (states == 2)
    assert isinstance(made, base.Optimizer1State) == (states == 1)
    assert made.optim_bits == made.args.optim_bits == (8 if "8bit" in name else 32)
    assert made.is_paged == ("Paged" in name)
    assert pickle.loads(pickle.dumps(cls)) is cls


@pytest.mark.parametrize(
    ("base", "rule", "name", "options"),
    [
        ("Optimizer2State", "adam", "AdamW", {"weight_decay": 0.01}),
        ("Optimizer1State", "lion", "Lion", {"betas": (0.9, 0.99)}),
        ("Optimizer1State", "momentum", "SGD", {"betas": (0.9, 0.0), "eps": 0.0}),
    ],
)
@pytest.mark.parametrize("bits", [8, 32])
def test_an_optimizer_by_the_name_of_its_rule(
    bnb: ModuleType, base: str, rule: str, name: str, options: dict[str, Any], bits: int, device: torch.device
) -> None:
    ours, theirs = parameters(device), parameters(device)
    named_options = {"momentum": 0.9} if name == "SGD" else options
    train(ours, getattr(bnb_core.optim, name)(ours, lr=1e-2, optim_bits=bits, **named_options), 0, 3)
    generic = getattr(bnb.optim.optimizer, base)(rule, theirs, lr=1e-2, optim_bits=bits, **options)
    train(theirs, generic, 0, 3)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(("base", "rule"), [("Optimizer1State", "adam"), ("Optimizer2State", "ademamix")])
def test_a_rule_of_another_number_of_states_is_refused(bnb: ModuleType, base: str, rule: str) -> None:
    with pytest.raises(ValueError, match=f"optimizer_name is '{rule}', expected one of "):
        getattr(bnb.optim.optimizer, base)(rule, [nn.Parameter(torch.zeros(4))])


# -- products ----------------------------------------------------------------------------------------------------------


def test_products_by_the_names_of_autograd_functions(bnb: ModuleType, device: torch.device) -> None:
    functions = bnb.autograd._functions
    W, x = torch.randn(24, 64, device=device), torch.randn(3, 64, device=device, requires_grad=True)
    bias = torch.randn(24, device=device)
    packed, state = F.quantize_4bit(W)
    want = bnb_core.matmul_4bit(x, packed, state, bias=bias)
    assert torch.equal(functions.MatMul4Bit.apply(x, packed.t(), None, bias, state), want)
    with pytest.raises(ValueError, match="quant_state is missing"):
        functions.MatMul4Bit.apply(x, packed)
    own = functions.MatmulLtState()
    own.has_fp16_weights, own.threshold = False, 2.0
    got = functions.MatMul8bitLt.apply(x, W, None, bias, own)
    assert own.CB is not None and own.SCB is not None and own.idx is None
    assert torch.equal(got, bnb.matmul(x, W, state=copy.copy(own), bias=bias))
    got.sum().backward()
    assert x.grad is not None
    own.reset_grads()
    assert own.CB is None


def test_the_pooler_keeps_columns_of_one_width(bnb: ModuleType) -> None:
    pooler = bnb.autograd._functions.GlobalOutlierPooler.get_instance()
    pooler.initialize()
    pooler.add_outliers(torch.tensor([5, 1]), 8)
    pooler.add_outliers(torch.tensor([9]), 16)
    pooler.add_outliers(torch.tensor([1, 2]), 8)
    assert pooler.get_current_outlier_idx().tolist() == [1, 2, 5]
    with pytest.raises(RuntimeError, match="get_instance"):
        bnb.autograd._functions.GlobalOutlierPooler()


@pytest.mark.parametrize("kind", ["Mixed", "Global"])
def test_products_of_8bit_floats(bnb: ModuleType, kind: str, device: torch.device) -> None:
    layer = getattr(bnb.research.nn, f"LinearFP8{kind}")(48, 24, bias=False).to(device)
    x = torch.randn(3, 48, device=device)
    product = getattr(bnb.research, f"matmul_fp8_{kind.lower()}")
    assert torch.equal(product(x, layer.weight.t(), layer.fw_code, layer.bw_code), layer(x))


def test_a_layers_state_is_a_state(bnb: ModuleType) -> None:
    layer = bnb.nn.Linear8bitLt(64, 32)
    assert isinstance(layer.state, bnb.MatmulLtState) and not isinstance(bnb_core.MatmulLtState(), bnb.MatmulLtState)
    layer.state = bnb.MatmulLtState()
    layer.state.threshold = 6.0
    assert layer.state.threshold == layer.threshold == 6.0


@pytest.mark.parametrize("name", ["Linear4bit", "Linear8bitLt"])
def test_a_subclass_with_the_forward_of_the_public_layers(bnb: ModuleType, name: str, device: torch.device) -> None:
    class Layer4(bnb.nn.Linear4bit):  # type: ignore[name-defined, misc]  # known at run time only
        def forward(self, x: Tensor) -> Tensor:
            if not self.compute_type_is_set:
                self.set_compute_type(x)
            return bnb.matmul_4bit(x, self.weight.t(), bias=self.bias, quant_state=self.weight.quant_state)

    class Layer8(bnb.nn.Linear8bitLt):  # type: ignore[name-defined, misc]  # known at run time only
        def __init__(self, *sizes: int) -> None:
            super().__init__(*sizes, has_fp16_weights=False)

        def forward(self, x: Tensor) -> Tensor:
            self.state.is_training = self.training
            if self.weight.CB is not None:
                self.init_8bit_state()
            return bnb.matmul(x, self.weight, bias=self.bias, state=self.state)

    cls, base = (Layer4, bnb.nn.Linear4bit) if name == "Linear4bit" else (Layer8, bnb.nn.Linear8bitLt)
    layer, x = cls(64, 32).to(device), torch.randn(3, 64, device=device)
    for _ in range(2):
        assert torch.equal(layer(x), base.forward(layer, x))


# -- tools -------------------------------------------------------------------------------------------------------------


def test_replace_linear(bnb: ModuleType) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.Linear(4, 4, bias=False)))
    model.add_module("lm_head", nn.Linear(4, 2))
    weight, head = model[0].weight, model.lm_head
    same = bnb.utils.replace_linear(model, bnb.nn.Linear8bitLt, copy_weights=True)
    assert same is model
    assert isinstance(model[0], bnb.nn.Linear8bitLt) and isinstance(model[1][0], bnb.nn.Linear8bitLt)
    assert model[0].weight is weight and model[1][0].bias is None
    assert model.lm_head is head


def test_replace_linear_calls_a_method_of_the_old_layers(bnb: ModuleType) -> None:
    class Noted(nn.Linear):
        def note(self, module: nn.Module) -> None:
            module.noted = True

    model = nn.Sequential(Noted(8, 4))
    old = model[0]
    bnb.utils.replace_linear(model, nn.Linear, post_processing_function="note")
    assert type(model[0]) is nn.Linear
    assert old.noted


def test_small_tools(bnb: ModuleType, device: torch.device) -> None:
    assert bnb.utils.execute_and_return(f"{sys.executable} -c 'print(7)'") == ("7\n", "")
    bnb.utils.sync_gpu(torch.zeros(1, device=device))
    state_dict: dict[str, Any] = {"a.weight_format": torch.tensor(0, dtype=torch.uint8)}
    bnb.nn.modules.maybe_rearrange_weight(state_dict, "a.", {}, True, [], [], [])
    assert not state_dict
    with pytest.raises(ValueError, match=r"a.weight_format is 2 \(col_turing\), expected 0 \(row\)"):
        bnb.nn.modules.maybe_rearrange_weight({"a.weight_format": torch.tensor(2)}, "a.", {}, True, [], [], [])
    layer = bnb.nn.LinearNF4(64, 8)
    with pytest.raises(RuntimeError, match="the weight has no quant_state"):
        bnb.nn.modules.fix_4bit_weight_quant_state_from_module(layer)
    bnb.nn.modules.fix_4bit_weight_quant_state_from_module(layer.to(device))


def test_functions_that_fill(bnb: ModuleType, device: torch.device) -> None:
    functional = bnb.functional
    A = torch.empty(2, 3, device=device)
    functional.fill(A, 2.0)
    assert A.eq(2).all()
    functional.elementwise_func("arange", A, None, None)
    assert A.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    functional._mul(A, A)
    assert A.flatten().tolist() == [0, 1, 4, 9, 16, 25]
    with pytest.raises(ValueError, match="func_name is 'sin', expected"):
        functional.elementwise_func("sin", A, None, None)


def test_pointers(bnb: ModuleType) -> None:
    tensor = torch.zeros(3)
    assert bnb.functional.get_ptr(None) is None
    assert bnb.functional.get_ptr(tensor).value == tensor.data_ptr()
    with pytest.raises(RuntimeError, match="tensors are on cpu, expected all on one accelerator"):
        bnb.functional.is_on_gpu([tensor, None])
    assert bnb.functional.is_on_gpu([torch.empty(1, device="meta"), None])


def test_paged_memory(bnb: ModuleType, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    functional = bnb.functional
    brought: list[Tensor] = []

    class Memory:
        def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        def prefetch(self, tensor: Tensor) -> None:
            brought.append(tensor)

    monkeypatch.setattr(paging, "_offered", {})
    with pytest.raises(RuntimeError, match="no backend has paged memory for cpu"):
        functional.get_paged(4, device=torch.device("cpu"))
    paging.register_paged_memory(device.type, Memory)
    manager = functional.GlobalPageManager.get_instance()
    manager.initialize()
    first, second = (functional.get_paged(4, 2, dtype=torch.uint8, device=device) for _ in range(2))
    assert first.is_paged and first.shape == (4, 2) and first.dtype == torch.uint8
    assert functional.is_on_gpu([first])
    functional.fill(first, 3)
    functional.prefetch_tensor(first, to_cpu=True)
    assert brought == [first]
    manager.prefetch_all()
    assert brought[1:] == [second, first]
    with pytest.raises(ValueError, match="A is not paged"):
        functional.prefetch_tensor(torch.zeros(4))


# -- functions by C names ----------------------------------------------------------------------------------------------


def library(bnb: ModuleType) -> Any:
    """The native library; skips where there is none."""
    if isinstance(bnb.functional.lib, bnb.cextension.ErrorHandlerMockBNBNativeLibrary):
        pytest.skip(f"no native library here: {bnb.functional.lib.error_msg}")
    return bnb.functional.lib


SUFFIXES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@pytest.mark.parametrize("dtype", SUFFIXES)
def test_c_functions_compute_what_operators_do(bnb: ModuleType, dtype: torch.dtype) -> None:
    from ctypes import c_longlong

    lib, ptr = library(bnb), bnb.functional.get_ptr
    A, code = torch.randn(6, 100).to(dtype), F.create_dynamic_map()
    q, absmax = torch.empty(6, 100, dtype=torch.uint8), torch.empty(10)
    lib[f"cquantize_blockwise_cpu_{SUFFIXES[dtype]}"](
        ptr(code), ptr(A), ptr(absmax), ptr(q), c_longlong(64), c_longlong(600)
    )
    want = torch.ops.bnb_core.quantize_blockwise(A, code, 64)
    assert torch.equal(q, want[0]) and torch.equal(absmax, want[1])
    out = torch.empty_like(A)
    dequantize = getattr(lib, f"cdequantize_blockwise_cpu_{SUFFIXES[dtype]}")
    dequantize(ptr(code), ptr(q), ptr(absmax), ptr(out), c_longlong(64), c_longlong(600))
    assert torch.equal(out, torch.ops.bnb_core.dequantize_blockwise(q, absmax, code, 64, dtype))
    for quant_type in ("nf4", "fp4"):
        packed, scales = torch.ops.bnb_core.quantize_4bit(A, 64, quant_type, torch.uint8)
        name = f"cdequantize_blockwise_cpu_{quant_type}_{SUFFIXES[dtype]}"
        lib[name](ptr(packed), ptr(scales), ptr(out), c_longlong(64), c_longlong(6), c_longlong(100))
        assert torch.equal(out, torch.ops.bnb_core.dequantize_4bit(packed, scales, 64, quant_type, (6, 100), dtype))


def test_c_functions_do_nothing_for_no_elements(bnb: ModuleType) -> None:
    from ctypes import c_longlong

    lib, ptr = library(bnb), bnb.functional.get_ptr
    A, out = torch.zeros(4, dtype=torch.uint8), torch.full((4,), 7.0)
    for blocksize, n in ((0, 4), (64, 0), (-1, 4), (64, -4)):
        args = (ptr(out), ptr(A), ptr(out), ptr(out))
        lib.cdequantize_blockwise_cpu_fp32(*args, c_longlong(blocksize), c_longlong(n))
    assert out.eq(7).all()
    lib.cdequantize_blockwise_cpu_nf4_fp32(None, None, None, c_longlong(64), c_longlong(0), c_longlong(4))
    lib.cquantize_blockwise_cpu_fp32(None, None, None, None, c_longlong(64), c_longlong(0))


@pytest.mark.parametrize("blocksize", [1, 7, 100, 2**62])
def test_c_functions_take_any_block_size(bnb: ModuleType, blocksize: int) -> None:
    from ctypes import c_longlong

    lib, ptr, n = library(bnb), bnb.functional.get_ptr, 601
    codes = torch.zeros(n, dtype=torch.uint8)
    absmax = torch.arange(1.0, 2 + (n - 1) // blocksize)
    out = torch.empty(n)
    lib.cdequantize_blockwise_cpu_nf4_fp32(
        ptr(codes), ptr(absmax), ptr(out), c_longlong(blocksize), c_longlong(1), c_longlong(n)
    )
    assert torch.equal(out, -(1 + torch.arange(n) // blocksize).float())


def test_an_unknown_c_name_says_so(bnb: ModuleType) -> None:
    with pytest.raises(AttributeError, match="has no function cgemm_4bit_inference"):
        _ = library(bnb).cgemm_4bit_inference
    stand_in = bnb.cextension.ErrorHandlerMockBNBNativeLibrary("it is not there")
    with pytest.raises(RuntimeError, match="cadam: it is not there"):
        stand_in.cadam()
    assert not hasattr(stand_in, "__array__")


# -- whole parameters --------------------------------------------------------------------------------------------------


def test_arguments_of_a_parameter_go_back_into_it(bnb: ModuleType, device: torch.device) -> None:
    """As transformers and peft make a parameter from another's `__dict__`."""
    weight = bnb.nn.LinearNF4(64, 8, bias=False, compute_dtype=torch.float32).to(device).weight
    again = bnb.nn.Params4bit(weight.data, requires_grad=False, **weight.__dict__)
    assert again.quant_state is weight.quant_state
    merged = bnb.nn.Params4bit(
        torch.ones(8, 64, device=device), requires_grad=False, **{**weight.__dict__, "bnb_quantized": False}
    ).to(device)
    assert merged.quant_type == "nf4" and F.dequantize_4bit(merged.data, merged.quant_state).eq(1).all()
    buffer = io.BytesIO()
    torch.save(weight, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True).quant_state == weight.quant_state
