"""How a call finds its kernel: order, limits, refusals, forcing, fallback, counters, explaining."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._C import DispatchKey
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import bnb_core
from bnb_core import ops_registry
from bnb_core.ops_registry import Kernel, Tolerance, dispatch

pytestmark = pytest.mark.usefixtures("nothing_forced")

OP = "int8_vectorwise_dequant"
A = torch.ones(2, 4, dtype=torch.int8)
STATS = torch.ones(2)


@pytest.fixture(autouse=True)
def toys_alone() -> Iterator[None]:
    """The operator of the toys has no other kernels than the reference."""
    native = [k for k in ops_registry.kernels.rows(OP) if not k.is_reference]
    for kernel in native:
        ops_registry.unregister_kernel(kernel)
    yield
    ops_registry.register_kernels(native)


def call(a: torch.Tensor = A, stats: torch.Tensor = STATS) -> float:
    """First value of the result: says which toy kernel ran."""
    return float(torch.ops.bnb_core.int8_vectorwise_dequant(a, stats).reshape(-1)[0])


def returning(value: float) -> Callable[..., torch.Tensor]:
    def kernel(A: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
        return torch.full(A.shape, value)

    return kernel


def toy(name: str, value: float, device: str = "cpu", op: str = OP, **fields: Any) -> Kernel:
    return Kernel(op=op, device=device, name=name, fn=returning(value), **fields)


@contextmanager
def registered(*kernels: Kernel) -> Iterator[None]:
    ops_registry.register_kernels(kernels)
    try:
        yield
    finally:
        for kernel in kernels:
            ops_registry.unregister_kernel(kernel)


def test_first_row_wins_and_the_reference_is_last() -> None:
    reference = call()
    with registered(toy("toy/a", 1), toy("toy/b", 2)):
        assert call() == 1
        found = ops_registry.kernels_for(OP, "cpu")
        assert [k.name for k in found if k.is_native] == ["toy/a", "toy/b"] and found[-1].is_reference
    assert call() == reference


def test_priority_comes_before_order() -> None:
    with registered(toy("toy/a", 1), toy("toy/b", 2, priority=1)):
        assert call() == 2


def test_limits_on_dtype_and_value() -> None:
    with registered(toy("toy/a", 1, limits={"A.ndim": {3}}), toy("toy/b", 2, limits={"A.ndim": {2}})):
        assert call() == 2
        assert call(torch.ones(1, 2, 4, dtype=torch.int8)) == 1
        assert call(torch.ones(4, dtype=torch.int8), torch.ones(1)) not in (1, 2)


def test_why_not_is_asked_at_every_call() -> None:
    def why_not(A: torch.Tensor, stats: torch.Tensor) -> str | None:
        return None if A.shape[-1] % 4 == 0 else f"needs K a multiple of 4, got {A.shape[-1]}"

    with registered(toy("toy/a", 1, why_not=why_not), toy("toy/b", 2)):
        assert call() == 1
        assert call(torch.ones(2, 5, dtype=torch.int8)) == 2
        assert call() == 1


def test_a_limit_on_a_list_speaks_of_its_first_tensor() -> None:
    args = next(ops_registry.OPS["optimizer_step_32bit"].each_case("cpu")).args
    kernel = Kernel(op="optimizer_step_32bit", device="cpu", name="toy/a", fn=print, limits={"params.dtype": {"none"}})
    assert kernel.outside_limits(args) == "params.dtype is float32, this kernel takes none"
    assert kernel.outside_limits((args[0], [], [], *args[3:])) is None


def test_duplicate_row_names_both_origins_and_registers_nothing() -> None:
    with registered(toy("toy/a", 1)):
        with pytest.raises(
            ValueError, match=r"toy/a of int8_vectorwise_dequant on cpu is registered twice: by .*kernel and by"
        ):
            ops_registry.register_kernels([toy("toy/new", 3), toy("toy/a", 2)])
        assert call() == 1


@pytest.mark.parametrize(
    ("kernel", "error"),
    [
        (toy("toy/a", 1, op="quantise"), "an operator 'quantise' that does not exist"),
        (
            Kernel(op="optimizer_step_32bit", device="cpu", name="toy/a", fn=print, limits={"beta1": {0.9}}),
            "limits beta1, by which calls of optimizer_step_32bit are not told apart",
        ),
        (toy("toy/a", 1, limits={"B.dtype": {torch.int8}}), "has no argument 'B'; it has A, stats"),
        (toy("toy/a", 1, tolerance=Tolerance({torch.float32: 0.1})), "looser than the operator's"),
        (toy("toy/a", 1, tolerance=Tolerance(codes=0.5)), "looser than the operator's"),
        (
            toy("toy/a", 1, limits={"A.dtpye": {torch.int8}}),
            "limits A.dtpye, but a limit on a tensor speaks of its",
        ),
        (toy("toy/any", 1, device="any"), "toy/any is for device any, but any is reference's alone"),
        (toy("reference", 1), "reference is for device cpu, but any is reference's alone"),
    ],
    ids=["op", "unread argument", "argument", "relative", "codes", "attribute", "any device", "second reference"],
)
def test_bad_row_is_refused(kernel: Kernel, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        ops_registry.register_kernels([kernel])


def test_unknown_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match="abacus"):
        ops_registry.register_kernels([toy("toy/a", 1, device="abacus")])


def test_function_is_imported_at_the_first_call() -> None:
    kernel = Kernel(op=OP, device="cpu", name="toy/lazy", fn="wave:no_such_function")
    sys.modules.pop("wave", None)
    with registered(kernel):
        assert "wave" not in sys.modules
        with pytest.raises(AttributeError, match="no_such_function"):
            call()
        assert "wave" in sys.modules


# -- force ---------------------------------------------------------------------------------------------------------


def test_force_selects_and_ends() -> None:
    reference = call()
    with registered(toy("toy/a", 1), toy("toy/b", 2)):
        with bnb_core.force("toy/b"):
            assert call() == 2
            with bnb_core.force("reference"):
                assert call() == reference
            assert call() == 2
        assert call() == 1


def test_force_leaves_operators_without_that_kernel_alone() -> None:
    with registered(toy("toy/a", 1)), bnb_core.force("toy/a"):
        got = torch.ops.bnb_core.int8_mm(A, A)
    assert got.tolist() == [[4, 4], [4, 4]]


def test_settings_that_overlap_end_each_by_itself() -> None:
    """As two threads may have it: the last one entered counts, and nothing is left behind."""
    reference = call()
    with registered(toy("toy/a", 1), toy("toy/b", 2)):
        first, second = bnb_core.force("reference"), bnb_core.force("toy/b")
        first.__enter__()
        second.__enter__()
        assert call() == 2
        first.__exit__()
        assert call() == 2
        second.__exit__()
        assert call() == 1
        with first, first:
            assert call() == reference
        assert call() == 1


def test_threads_that_call_while_rows_come_and_go() -> None:
    """No call ever runs a kernel that refuses its inputs."""
    wrong: list[float] = []
    stop = threading.Event()
    shapes = {2: torch.ones(2, 4, dtype=torch.int8), 3: torch.ones(2, 1, 4, dtype=torch.int8)}

    def work() -> None:
        while not stop.is_set():
            for ndim, codes in shapes.items():
                value = call(codes)
                if value >= 2 and value != ndim:
                    wrong.append(value)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        rows = [toy(f"toy/{n}", n, limits={"A.ndim": {n}}) for n in shapes]
        with registered(rows[0]), registered(rows[1]):
            call()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_limits_on_lists_of_sizes() -> None:
    op = "dequantize_4bit"
    packed, absmax = torch.ops.bnb_core.quantize_4bit(torch.ones(2, 64), 64, "nf4", torch.uint8)

    def kernel(A, absmax, blocksize, quant_type, shape, dtype, out=None):  # type: ignore[no-untyped-def]
        return torch.full(tuple(shape), 7.0)

    def values(*shape: int) -> float:
        decoded = torch.ops.bnb_core.dequantize_4bit(packed, absmax, 64, "nf4", shape, torch.float32)
        return float(decoded.reshape(-1)[0])

    with registered(Kernel(op=op, device="cpu", name="toy/a", fn=kernel, limits={"shape": [(2, 64)]}, priority=99)):
        assert values(2, 64) == 7
        assert values(64, 2) == 1


def test_forcing_an_unknown_name_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no kernel is named cpu/avx1024; known are .*reference"):
        bnb_core.force("cpu/avx1024")


@pytest.mark.parametrize("kind", ["limits", "why_not"])
def test_forced_kernel_that_refuses_raises_its_reason(kind: str) -> None:
    why: dict[str, Any] = (
        {"limits": {"A.ndim": {3}}} if kind == "limits" else {"why_not": lambda A, stats: "moon phase"}
    )
    reason = "A.ndim is 2, this kernel takes 3" if kind == "limits" else "moon phase"
    error = pytest.raises(RuntimeError, match=f"bnb_core::{OP}: the forced kernel toy/a refuses: {reason}")
    with registered(toy("toy/a", 1, **why)), bnb_core.force("toy/a"), error:
        call()


def test_compiled_program_obeys_force() -> None:
    compiled = torch.compile(torch.ops.bnb_core.int8_vectorwise_dequant, fullgraph=True, backend="aot_eager")
    reference = float(compiled(A, STATS)[0, 0])
    with registered(toy("toy/a", 1)):
        assert float(compiled(A, STATS)[0, 0]) == 1
        with bnb_core.force("reference"):
            assert float(compiled(A, STATS)[0, 0]) == reference


@pytest.mark.parametrize("enter", [lambda: bnb_core.force("reference"), lambda: bnb_core.fallback("allow")])
def test_entering_inside_a_compiled_region_is_an_error(enter: Callable[[], Any]) -> None:
    def inside(x: torch.Tensor) -> torch.Tensor:
        with enter():
            return torch.ops.bnb_core.int8_vectorwise_dequant(x, STATS)

    # torch 2.6 says no more of an error in traced code than that there was one.
    with pytest.raises(Exception, match=r"cannot be entered inside a compiled region|Observed exception"):
        torch.compile(inside, fullgraph=True, backend="eager")(A)


def in_new_process(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_force_from_the_environment() -> None:
    program = """if True:
        import torch, bnb_core
        codes = torch.zeros(4, dtype=torch.uint8)
        torch.ops.bnb_core.dequantize_blockwise(codes, torch.ones(1), torch.ones(2), 64, torch.float32)
        print(bnb_core.ops_registry.kernel_counts())"""
    done = in_new_process(program, BNB_CORE_FORCE="reference")
    assert done.stdout.strip() == "{('dequantize_blockwise', 'cpu', 'reference'): 1}", done.stderr


def test_unknown_name_in_the_environment_is_an_error() -> None:
    done = in_new_process("import bnb_core", BNB_CORE_FORCE="cpu/avx1024")
    assert done.returncode and "no kernel is named cpu/avx1024; known are" in done.stderr


def test_empty_variables_are_as_good_as_none() -> None:
    done = in_new_process("import bnb_core", BNB_CORE_FORCE="", BNB_CORE_FALLBACK="")
    assert done.returncode == 0, done.stderr


def test_unknown_policy_in_the_environment_is_an_error() -> None:
    done = in_new_process("import bnb_core", BNB_CORE_FALLBACK="maybe")
    assert done.returncode and "BNB_CORE_FALLBACK is 'maybe', expected one of error, warn, allow" in done.stderr


# -- fallback, on an accelerator's dispatch key with host memory
# ----------------------------------------------------------


def call_as_xpu() -> torch.Tensor:
    return torch.ops.bnb_core.int8_vectorwise_dequant.default._op_dk(DispatchKey.XPU, A, STATS)


@pytest.fixture
def refusing_xpu_kernel() -> Iterator[None]:
    ops_registry.choosing.warned.clear()
    with registered(toy("toy/xpu", 1, device="xpu", limits={"A.ndim": {3}})):
        yield


@pytest.mark.usefixtures("refusing_xpu_kernel")
def test_fallback_warns_once_with_the_reason() -> None:
    with pytest.warns(ops_registry.FallbackWarning, match=r"on xpu runs on the slow reference: toy/xpu: A\.ndim is 2"):
        call_as_xpu()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call_as_xpu()


def test_fallback_warns_once_for_each_operator_device_and_reason() -> None:
    ops_registry.choosing.warned.clear()
    op, other = ops_registry.OPS[OP], ops_registry.OPS["int8_vectorwise_quant"]
    two, one, values = (A, STATS), (A[:1], STATS[:1]), (torch.ones(2, 4), 0.0)
    refusing = toy("toy/hpu", 1, device="hpu", why_not=lambda A, stats: f"{len(A)} rows")
    with registered(refusing), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for called, device, args in 2 * [(op, "npu", two), (op, "hpu", two), (op, "hpu", one), (other, "npu", values)]:
            plan = ops_registry.choosing.Plan(called, device)
            assert plan.chosen(args).is_reference
            plan.ask(plan.choose(args), args)
    assert [str(warning.message).partition("::")[2] for warning in caught] == [
        f"{OP} on npu runs on the slow reference: no kernel is registered for device npu",
        f"{OP} on hpu runs on the slow reference: toy/hpu: 2 rows",
        f"{OP} on hpu runs on the slow reference: toy/hpu: 1 rows",
        "int8_vectorwise_quant on npu runs on the slow reference: no kernel is registered for device npu",
    ]


@pytest.mark.usefixtures("refusing_xpu_kernel")
def test_fallback_policy_error_and_allow() -> None:
    ops_registry.reset_kernel_counts()
    with bnb_core.fallback("error"), pytest.raises(ops_registry.FallbackError, match=r"toy/xpu: A\.ndim is 2"):
        call_as_xpu()
    assert (OP, "xpu", "reference") not in ops_registry.kernel_counts()
    with bnb_core.fallback("allow"), warnings.catch_warnings():
        warnings.simplefilter("error")
        call_as_xpu()


@pytest.mark.usefixtures("refusing_xpu_kernel")
def test_a_warning_that_is_an_error_stays_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(ops_registry.FallbackWarning):
                call_as_xpu()


@pytest.mark.usefixtures("refusing_xpu_kernel")
def test_forced_reference_is_no_fallback() -> None:
    with bnb_core.fallback("error"), bnb_core.force("reference"):
        call_as_xpu()


def test_device_without_any_kernel_says_so() -> None:
    plan = ops_registry.choosing.Plan(ops_registry.OPS[OP], "npu")
    with pytest.warns(ops_registry.FallbackWarning, match="no kernel is registered for device npu"):
        assert plan.ask(plan.choose((A, STATS)), (A, STATS)).is_reference


def test_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="policy is 'never', expected one of error, warn, allow"):
        bnb_core.fallback("never")


# -- counting and explaining
# --------------------------------------------------------------------------------------------


def test_counts() -> None:
    with registered(toy("toy/a", 1)):
        ops_registry.reset_kernel_counts()
        call(), call()
        with bnb_core.force("reference"):
            call()
        assert ops_registry.kernel_counts() == {(OP, "cpu", "toy/a"): 2, (OP, "cpu", "reference"): 1}


def test_explain_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    with registered(toy("toy/a", 1, limits={"A.ndim": {3, 4}}), toy("toy/b", 2, why_not=lambda A, stats: None)):
        bnb_core.explain(OP, A, STATS)
        first, *rows = capsys.readouterr().out.splitlines()
        assert first == f"bnb_core::{OP} on cpu: A int8[2, 4], stats float32[2]"
        others = [kernel.name for kernel in ops_registry.kernels_for(OP, "cpu") if not kernel.is_native]
        assert [" ".join(row.split()) for row in rows] == [
            "toy/a A.ndim is 2, this kernel takes 3, 4",
            "-> toy/b runs",
            *(f"{name} toy/b comes first" for name in others),
        ]
        with bnb_core.force("reference"):
            bnb_core.explain(OP, A, STATS)
        assert "toy/b            reference is forced" in capsys.readouterr().out


def test_explain_without_arguments_shows_limits(capsys: pytest.CaptureFixture[str]) -> None:
    with registered(toy("toy/a", 1, limits={"A.dtype": (torch.int8,)})):
        bnb_core.explain(OP)
    out = capsys.readouterr().out
    assert "on cpu, best first" in out and "A.dtype: int8" in out and "on any other device" in out


def test_explain_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match="there is no operator 'gemm'; there are quantize_blockwise"):
        bnb_core.explain("gemm")
    with pytest.raises(RuntimeError, match="stats has 3 elements"):
        bnb_core.explain(OP, A, torch.ones(3))
    for args in ((A,), (A, STATS, 1)):
        with pytest.raises(ValueError, match=r"was given \d arguments, expected those of int8_vectorwise_dequant"):
            bnb_core.explain(OP, *args)


# -- calls that are known
# ---------------------------------------------------------------------------------------------


@contextmanager
def forgetful() -> Iterator[dict[tuple[Any, ...], Any]]:
    """The signatures known to the toy kernels' operator on the CPU, emptied for the time being."""
    known = dispatch.remembered[OP, "cpu"]
    before = dict(known)
    known.clear()
    try:
        yield known
    finally:
        known.clear()
        known.update(before)


def test_a_known_call_is_neither_checked_nor_chosen_again() -> None:
    with registered(toy("toy/a", 1)), forgetful() as known:
        call(), call(), call(torch.zeros(2, 4, dtype=torch.int8))
        assert len(known) == 1
        call(torch.ones(4, 4, dtype=torch.int8), torch.ones(4))
        assert len(known) == 2


def test_a_refused_call_is_not_remembered() -> None:
    with registered(toy("toy/a", 1)), forgetful() as known:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="stats has 3 elements"):
                call(A, torch.ones(3))
        with bnb_core.force("reference"):
            call()
        assert len(known) == 1


def test_the_memory_for_signatures_is_bounded() -> None:
    most = dispatch.MOST_SIGNATURES
    with registered(toy("toy/a", 1)), forgetful() as known:
        sizes = []
        for columns in range(1, most + 10):
            call(torch.ones(2, columns, dtype=torch.int8))
            sizes.append(len(known))
    assert max(sizes) == most and sizes[-1] < most


def test_why_not_is_asked_although_the_call_is_known() -> None:
    reasons: list[str | None] = [None, "moon phase", None]
    with registered(toy("toy/a", 1, why_not=lambda A, stats: reasons[0]), toy("toy/b", 2)):
        assert [(call(), reasons.pop(0)) for _ in range(3)] == [(1, None), (2, "moon phase"), (1, None)]


def test_a_symbolic_size_is_checked_and_not_remembered() -> None:
    rows = ShapeEnv().create_unbacked_symint()
    packed, absmax = torch.ops.bnb_core.quantize_4bit(torch.ones(2, 64), 64, "nf4", torch.uint8)
    decode = torch.ops.bnb_core.dequantize_4bit

    def kernel(A, absmax, blocksize, quant_type, shape, dtype, out=None):  # type: ignore[no-untyped-def]
        return torch.full((2, 64), 7.0)

    with registered(Kernel(op="dequantize_4bit", device="cpu", name="toy/a", fn=kernel, priority=99)):
        before = len(dispatch.remembered["dequantize_4bit", "cpu"])
        assert decode(packed, absmax, 64, "nf4", (rows, 64), torch.float32)[0, 0] == 7
        with pytest.raises(RuntimeError, match="blocksize is 63"):
            decode(packed, absmax, 63, "nf4", (rows, 64), torch.float32)
        assert len(dispatch.remembered["dequantize_4bit", "cpu"]) == before


def test_a_known_call_records_nothing_when_a_gradient_is_wanted() -> None:
    recorded: list[bool] = []

    def kernel(A, absmax, code, blocksize, dtype, out=None):  # type: ignore[no-untyped-def]
        result = absmax * 2
        recorded.append(result.requires_grad)
        return result.detach()

    decode = torch.ops.bnb_core.dequantize_blockwise
    with registered(Kernel(op="dequantize_blockwise", device="cpu", name="toy/a", fn=kernel, priority=99)):
        for wanted in (False, True, False):
            absmax = torch.ones(1, requires_grad=wanted)
            decode(torch.zeros(4, dtype=torch.uint8), absmax, torch.ones(2), 64, torch.float32)
    assert recorded == [False] * 3


# -- autograd --------------------------------------------------------------------------------------------------------


def test_a_kernel_may_write_to_a_leaf_and_records_nothing(device: torch.device) -> None:
    p, state = torch.zeros(4, device=device, requires_grad=True), torch.zeros(4, device=device)
    scalars = (0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 1, 0.5, 1.0)
    torch.ops.bnb_core.optimizer_update_32bit("momentum", torch.ones_like(p), p, state, None, None, *scalars)
    assert p.is_leaf
    assert p.tolist() == [-0.5] * 4


def test_differentiating_through_an_operator_warns(device: torch.device) -> None:
    """An operator has no gradient; torch says so instead of leaving one out silently."""
    x = torch.randn(8, 64, device=device, requires_grad=True)
    packed, absmax = torch.ops.bnb_core.quantize_4bit(x.detach(), 64, "nf4", torch.uint8)
    product = torch.ops.bnb_core.gemm_4bit(x, packed, (8, 64), absmax, 64, "nf4")
    with pytest.warns(UserWarning, match="bnb_core::gemm_4bit: an autograd kernel was not registered"):
        product.sum().backward()
    assert x.grad is None


def test_a_result_made_without_gradients_may_be_changed_with_them(device: torch.device) -> None:
    """As that of torch's own products: it is no view of anything."""
    packed, absmax = torch.ops.bnb_core.quantize_4bit(torch.ones(2, 64, device=device), 64, "nf4", torch.uint8)
    trained = torch.ones(2, device=device, requires_grad=True)
    with torch.no_grad(), bnb_core.force("reference"):
        result = torch.ops.bnb_core.gemm_4bit(torch.ones(3, 64, device=device), packed, (2, 64), absmax, 64, "nf4")
    result.add_(trained).sum().backward()
    assert trained.grad is not None and trained.grad.tolist() == [3, 3]


# -- composed of other operators ---------------------------------------------------------------------------------------


def names(op: str, device: str) -> list[str]:
    return [kernel.name for kernel in ops_registry.kernels_for(op, device)]


def test_a_device_with_kernels_for_the_parts_has_the_whole() -> None:
    part = Kernel(op="dequantize_4bit", device="xpu", name="toy/xpu", fn=print)
    products = ("gemm_4bit", "grouped_gemm_4bit", "embedding_4bit")
    assert [names(op, "xpu") for op in products] == [["reference"]] * 3
    with registered(part):
        assert [names(op, "xpu") for op in products] == [["composed", "reference"]] * 3
        own = Kernel(op="gemm_4bit", device="xpu", name="toy/own", fn=print)
        with registered(own):
            assert names("gemm_4bit", "xpu") == ["toy/own", "composed", "reference"]
    assert [names(op, "xpu") for op in products] == [["reference"]] * 3


def test_all_parts_are_needed() -> None:
    coded = [
        Kernel(op=op, device="xpu", name="toy/xpu", fn=print) for op in ("quantize_blockwise", "dequantize_blockwise")
    ]
    with registered(coded[0]):
        assert names("optimizer_step_8bit_blockwise", "xpu") == ["reference"]
        with registered(coded[1]):
            assert names("optimizer_step_8bit_blockwise", "xpu") == ["composed", "reference"]
    never = Kernel(op="dequantize_4bit", device="xpu", name="toy/xpu", fn=print, unavailable="this device is a toy")
    with registered(never):
        assert names("gemm_4bit", "xpu") == ["reference"]


def test_what_is_composed_calls_the_kernels_of_the_device_and_is_no_fallback() -> None:
    W, x = torch.randn(8, 64), torch.randn(2, 64)
    packed, absmax = torch.ops.bnb_core.quantize_4bit(W, 64, "nf4", torch.uint8)
    reference = importlib.import_module("bnb_core.backends.reference.fourbit")
    decoded = []

    def dequantize_4bit(A, absmax, blocksize, quant_type, shape, dtype, out=None):  # type: ignore[no-untyped-def]
        decoded.append(tuple(shape))
        return reference.dequantize_4bit(A, absmax, blocksize, quant_type, shape, dtype)

    with registered(Kernel(op="dequantize_4bit", device="cpu", name="toy/a", fn=dequantize_4bit, priority=99)):
        ops_registry.reset_kernel_counts()
        with bnb_core.fallback("error"), bnb_core.force("composed"):
            got = torch.ops.bnb_core.gemm_4bit(x, packed, (8, 64), absmax, 64, "nf4")
            rows = torch.ops.bnb_core.embedding_4bit(
                torch.tensor([5, 0]), packed, (8, 64), absmax, 64, "nf4", torch.float32
            )
        assert decoded == [(8, 64), (2, 64)]
        assert ops_registry.kernel_counts()["gemm_4bit", "cpu", "composed"] == 1
    weight = reference.dequantize_4bit(packed, absmax, 64, "nf4", (8, 64), torch.float32)
    torch.testing.assert_close(got, x @ weight.t())
    assert torch.equal(rows, weight[[5, 0]])


def test_what_is_composed_refuses_with_its_reason() -> None:
    packed, absmax = torch.ops.bnb_core.quantize_4bit(torch.randn(8, 40), 64, "nf4", torch.uint8)
    args = (torch.tensor([1]), packed, (8, 40), absmax, 64, "nf4", torch.float32)
    with bnb_core.force("composed"), pytest.raises(RuntimeError, match="needs rows of whole blocks of 64, got shapeB"):
        torch.ops.bnb_core.embedding_4bit(*args)


def test_its_name_is_taken() -> None:
    with pytest.raises(ValueError, match="kernel gemm_4bit on cpu has the name of what is composed of other operators"):
        ops_registry.register_kernels([Kernel(op="gemm_4bit", device="cpu", name="composed", fn=print)])
