"""The example backend in a package of its own, and its simulated accelerator: found, used, composed, isolated."""

from __future__ import annotations

import subprocess
from pathlib import Path

import installed
import pytest
from conftest import LEVEL
from torch.utils import backend_registration

pytestmark = [
    pytest.mark.usefixtures("nothing_forced"),
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="torch < 2.9 has no accelerators in Python",
    ),
]

EXAMPLE = Path(__file__).parents[1] / "examples" / "acme"
BEGIN = """
import copy, torch, bnb_core
from bnb_core import functional as F, ops_registry
torch.manual_seed(0)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed.install(tmp_path_factory.mktemp("site"), "acme", "bnb_core_acme.backend")


def run(site: Path, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return installed.python("-c", BEGIN + program, path=(site, EXAMPLE), **environment)


def passes(site: Path, program: str, **environment: str) -> None:
    done = run(site, program, **environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_entry_point_of_the_project_is_the_one_that_is_found_here() -> None:
    assert 'acme = "bnb_core_acme.backend"' in (EXAMPLE / "pyproject.toml").read_text()


def test_it_is_found_and_says_what_runs_where(site: Path) -> None:
    done = run(site, "from bnb_core.cli import main; main(['info'])")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["acme", "loaded", "6"] in [line[:3] for line in lines]
    asked = ("dequantize_4bit", "gemm_4bit", "int8_linear", "int8_mm_dequant", "int8_double_quant")
    table = {line[0]: line[-1] for line in lines if line and line[0] in asked}
    assert table == dict(zip(asked, ["acme/host", *["composed"] * 3, "reference"], strict=True))


def test_tensors_live_on_two_devices(site: Path) -> None:
    passes(
        site,
        """
x = torch.randn(4, 5)
for index in range(2):
    here = x.to(f"acme:{index}")
    assert here.device == torch.device("acme", index) and here.is_acme
    assert torch.equal((here @ here.t())[1:].cpu(), (x @ x.t())[1:])
    here[0] = 7
    assert torch.equal(here.cpu()[1:], x[1:]) and here.cpu()[0].eq(7).all()
    assert torch.arange(3, device=here.device).tolist() == [0, 1, 2]
    assert torch.zeros(0, 3, device=here.device).shape == (0, 3)
assert torch.accelerator.current_accelerator().type == "acme"
""",
    )


def test_a_layer_is_composed_of_its_kernels(site: Path) -> None:
    passes(
        site,
        """
layer = bnb_core.nn.LinearNF4(64, 32, compress_statistics=False)
x = torch.randn(3, 64)
here = copy.deepcopy(layer).to("acme")
there = layer.to("cpu")
assert torch.equal(here.weight.data.cpu(), there.weight.data), "the same bytes"
ops_registry.reset_kernel_counts()
y = x.to("acme").requires_grad_()
with bnb_core.fallback("error"):
    out = here(y)
    out.sum().backward()
ran = {key: count for key, count in ops_registry.kernel_counts().items() if key[1] == "acme"}
assert ran == {("gemm_4bit", "acme", "composed"): 1, ("dequantize_4bit", "acme", "acme/host"): 2}
z = x.clone().requires_grad_()
there(z).sum().backward()
torch.testing.assert_close(out.cpu(), there(x))
torch.testing.assert_close(y.grad.cpu(), z.grad)
assert torch.equal(here.to("acme:1").weight.data.cpu(), there.weight.data)
assert torch.equal(here(x.to("acme:1")).cpu(), out.cpu())
""",
    )


def test_int8_layers_and_embeddings_are_composed_too(site: Path) -> None:
    passes(
        site,
        """
x, indices = torch.randn(3, 64), torch.tensor([[3, 0], [1, 3]])
for make, given in (
    (lambda: bnb_core.nn.Linear8bitLt(64, 32, has_fp16_weights=False, threshold=2.0), x),
    (lambda: bnb_core.nn.Linear8bitLt(64, 32, has_fp16_weights=True), x),
    (lambda: bnb_core.nn.EmbeddingNF4(8, 64), indices),
    (lambda: bnb_core.nn.Embedding8bit(8, 64), indices),
):
    layer = make()
    here, there = copy.deepcopy(layer).to("acme"), layer.to("cpu")
    with bnb_core.fallback("error"):
        out = here(given.to("acme"))
    torch.testing.assert_close(out.cpu(), there(given))
""",
    )


def test_modules_move_between_its_devices_and_the_cpu(site: Path) -> None:
    passes(
        site,
        """
x = torch.randn(3, 64)
for make in (
    lambda: bnb_core.nn.LinearNF4(64, 32),
    lambda: bnb_core.nn.LinearFP4(64, 32, compress_statistics=False),
    lambda: bnb_core.nn.Linear8bitLt(64, 32, has_fp16_weights=False),
):
    layer = make().to("acme:0")
    want = layer(x.to("acme:0")).cpu()
    for place in ("acme:1", "cpu", "acme:1", "acme:0"):
        layer = copy.deepcopy(layer).to(place)
        assert {parameter.device for parameter in layer.parameters()} == {torch.device(place)}
        assert torch.allclose(layer(x.to(place)).cpu(), want, atol=1e-5), place
""",
    )


def test_what_is_saved_is_loaded_on_any_device(site: Path) -> None:
    passes(
        site,
        """
import io
layer = bnb_core.nn.LinearNF4(64, 32).to("acme:1")
state, file = layer.state_dict(), io.BytesIO()
torch.save(state, file)
for place in ("acme:0", "acme:1", "cpu", None):
    file.seek(0)
    loaded = torch.load(file, map_location=place)
    assert loaded["weight"].device == loaded["weight.absmax"].device == torch.device(place or "acme:1")
    assert all(torch.equal(loaded[key].cpu(), state[key].cpu()) for key in state)
    other = bnb_core.nn.LinearNF4(64, 32).to("acme:0")
    other.load_state_dict(loaded)
    assert torch.equal(other.weight.data.cpu(), layer.weight.data.cpu())
""",
    )


def test_what_it_does_not_have_runs_on_the_reference_as_the_policy_says(site: Path) -> None:
    program = """
x = torch.ones(2, 3, device="acme")
for _ in range(2):
    torch.ops.bnb_core.int8_double_quant(x)
"""
    sentence = "bnb_core::int8_double_quant on acme runs on the slow reference: no kernel is registered for device acme"
    assert run(site, program, BNB_CORE_FALLBACK="warn").stderr.count(f"FallbackWarning: {sentence}") == 1
    assert f"FallbackError: {sentence}" in run(site, program, BNB_CORE_FALLBACK="error").stderr
    assert not run(site, program, BNB_CORE_FALLBACK="allow").stderr


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("API_VERSION = 999", "it is written for API_VERSION 999, this bnb_core has API_VERSION 1"),
        ("import no_such_driver", "No module named 'no_such_driver'"),
    ],
)
def test_a_broken_backend_beside_it_breaks_nothing(site: Path, tmp_path: Path, source: str, reason: str) -> None:
    (installed.install(tmp_path, "broken", "broken") / "broken.py").write_text(source)
    path = (tmp_path, site, EXAMPLE)
    program = "F.quantize_4bit(torch.randn(8, 64, device='acme'), quant_type='nf4')"
    done = installed.python("-c", BEGIN + program, path=path)
    assert done.returncode == 0 and not done.stderr
    listed = " ".join(installed.python("-m", "bnb_core", path=path, COLUMNS="200").stdout.split())
    assert "acme loaded 6" in listed and "broken failed" in listed and reason in listed


# -- strict mode: nothing but the kernels and a short list of torch's operations ---------------------------------------


def test_a_strict_device_refuses_what_is_not_in_its_table(site: Path) -> None:
    passes(
        site,
        """
from bnb_core_acme.device import strict
x = torch.ones(2, device="acme:1")
assert torch.equal(x.tanh().cpu(), torch.ones(2).tanh())
with strict():
    assert torch.equal((x + x).cpu(), torch.full((2,), 2.0))
    try:
        x.tanh()
    except NotImplementedError as error:
        assert str(error) == "aten::tanh is not implemented on acme:1"
    else:
        raise AssertionError
x.tanh()
""",
    )
    done = run(site, "torch.ones(2, device='acme').cumsum(0)", BNB_CORE_ACME_STRICT="1")
    assert "NotImplementedError: aten::cumsum is not implemented on acme:0" in done.stderr


STRICT = {"BNB_CORE_ACME_STRICT": "1", "BNB_CORE_FALLBACK": "error"}


def test_layers_run_on_a_strict_device(site: Path) -> None:
    passes(
        site,
        """
import io
x, indices = torch.randn(3, 64), torch.tensor([[3, 0], [1, 3]])
nn = bnb_core.nn
for dtype in (torch.float32, torch.bfloat16):
    for layer in (
        nn.LinearNF4(64, 32, compute_dtype=dtype),
        nn.LinearFP4(64, 32, compute_dtype=dtype, compress_statistics=False),
        nn.Linear8bitLt(64, 32, has_fp16_weights=False, threshold=2.0).to(dtype),
        nn.Linear8bitLt(64, 32, has_fp16_weights=True).to(dtype),
        nn.EmbeddingNF4(8, 64, dtype=dtype),
        nn.Embedding8bit(8, 64, dtype=dtype),
    ):
        layer = layer.to("acme")
        if "Embedding" in type(layer).__name__:
            layer(indices.to("acme"))
        else:
            given = x.to(dtype).to("acme").requires_grad_()
            layer(given).sum().backward()
            assert given.grad.abs().sum().item() > 0
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        layer.load_state_dict(torch.load(file))
        layer.to("acme:1").to("cpu").to("acme")
""",
        **STRICT,
    )


def test_blockwise_optimizers_train_on_a_strict_device(site: Path) -> None:
    passes(
        site,
        """
for name in ("Adam", "AdamW", "PagedAdamW", "Adagrad", "AdEMAMix", "LAMB", "LARS", "Lion", "RMSprop", "SGD"):
    layers = torch.nn.Linear(64, 80, bias=False), torch.nn.ReLU(), torch.nn.Linear(80, 64, bias=False)
    model = torch.nn.Sequential(*layers).to("acme")
    momentum = {"momentum": 0.9} if name in ("LARS", "SGD") else {}
    optimizer = getattr(bnb_core.optim, f"{name}8bit")(model.parameters(), lr=1e-2, **momentum)
    for _ in range(2):
        loss = torch.nn.functional.mse_loss(model(torch.randn(4, 64).to("acme")), torch.randn(4, 64).to("acme"))
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
ran = {kernel for op, device, kernel in ops_registry.kernel_counts() if device == "acme"}
assert ran == {"acme/host", "composed"}, ran
""",
        **STRICT,
    )


def test_an_optimizer_trains_on_it(site: Path) -> None:
    passes(
        site,
        """
model = torch.nn.Sequential(torch.nn.Linear(64, 80), torch.nn.ReLU(), torch.nn.Linear(80, 4))
x, target = torch.randn(8, 64), torch.randn(8, 4)
losses = {}
for device in ("cpu", "acme"):
    own = copy.deepcopy(model).to(device)
    optimizer = bnb_core.optim.AdamW8bit(own.parameters(), lr=1e-2)
    losses[device] = []
    for _ in range(4):
        loss = torch.nn.functional.mse_loss(own(x.to(device)), target.to(device))
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        losses[device].append(loss.item())
    assert optimizer.state[own[0].weight]["state1"].device.type == device
torch.testing.assert_close(losses["acme"], losses["cpu"], rtol=1e-3, atol=1e-3)
assert losses["acme"][-1] < losses["acme"][0]
""",
        BNB_CORE_FALLBACK="allow",
    )


def test_tensors_of_two_devices_are_refused(site: Path) -> None:
    done = run(
        site,
        """
packed, state = F.quantize_4bit(torch.randn(8, 64, device="acme"), quant_type="nf4")
torch.ops.bnb_core.dequantize_4bit(packed, state.absmax.to("acme:1"), 64, "nf4", (8, 64), torch.float32)
""",
    )
    assert "RuntimeError: bnb_core::dequantize_4bit: absmax is on acme:1" in done.stderr


# -- the conformance run -----------------------------------------------------------------------------------------------


def test_its_kernels_conform_on_a_strict_device(site: Path) -> None:
    """Every operator that has a kernel or is composed, with nothing of torch but the table; every third case."""
    passes(
        site,
        f"""
from itertools import islice
from bnb_core.conformance.attempts import ASPECTS, Subject
kinds = []
for op in ops_registry.OPS.values():
    known = {{}}
    for row in ops_registry.kernels_for(op.name, "acme"):
        if row.is_reference:
            continue
        kinds.append("native" if row.is_native else "composed")
        subject = Subject(op, "acme", row, known=known)
        for aspect, attempts in ASPECTS.items():
            chosen = islice(attempts(subject), 0, None, {1 if LEVEL == "full" else 3})
            outcomes = [(attempt.case, attempt.outcome()) for attempt in chosen]
            wrong = [(case, outcome.sentences) for case, outcome in outcomes if outcome.sentences]
            assert not wrong, (op.name, aspect, wrong[:2])
            assert outcomes or aspect not in ("agreement", "strided", "other device", "opcheck"), (op.name, aspect)
assert (kinds.count("native"), kinds.count("composed")) == (6, 10), kinds
""",
        BNB_CORE_ACME_STRICT="1",
    )


def test_levels_hold_with_what_the_operators_are(site: Path) -> None:
    passes(
        site,
        """
from bnb_core.conformance import Findings, KernelTrial, claims, conform, end_to_end
scenarios = list(end_to_end("acme"))
assert not [scenario.failure for scenario in scenarios if scenario.failure]
with_reference = {s.name for s in scenarios if any(kernel.endswith(": reference") for kernel in s.kernels)}
assert with_reference == {s.name for s in scenarios if s.name.endswith("32-bit state")}, with_reference
first = [ops_registry.kernels_for(op, "acme")[0] for op in ops_registry.OPS]
trials = [
    KernelTrial(row.op, row.name, "native" if row.is_native else "reference" if row.is_reference else "composed")
    for row in first
]
found = {level: (holds, why) for level, holds, why in claims(Findings("acme", "full", {}, trials, scenarios))}
assert found["inference"] == (True, "operators: 4 native, 8 composed, 0 reference"), found
assert found["qlora"] == (True, "operators: 6 native, 8 composed, 0 reference"), found
assert found["full"][0]
""",
    )


def test_faults_of_a_device_are_caught(site: Path) -> None:
    """A kernel that forgets which device it is on, and one that computes on the CPU."""
    passes(
        site,
        """
from bnb_core.conformance import conform
right = ops_registry.kernels_for("int8_mm", "acme")[0].function
def on_the_first(A, B, out=None):
    value = right(A, B).to("acme:0")
    return value if out is None else out.copy_(value)
def on_the_cpu(A, B, out=None):
    value = right(A, B).cpu()
    return value if out is None else out.copy_(value)
for fn, aspect, sentence in (
    (on_the_first, "other device", "a result is on acme:0, not acme:1"),
    (on_the_cpu, "agreement", "a result is on cpu"),
):
    row = ops_registry.Kernel(op="int8_mm", device="acme", name="acme/wrong", fn=fn, priority=1)
    ops_registry.register_kernels([row])
    (trial,) = conform("acme", ["int8_mm"], kernels=["acme/wrong"])
    ops_registry.unregister_kernel(row)
    assert any(f.aspect == aspect and sentence in f.sentences for f in trial.failures), trial.failures
""",
    )


def test_the_command_times_it(site: Path) -> None:
    done = run(
        site,
        """
from bnb_core.cli import main
raise SystemExit(main(["conformance", "--device", "acme", "--op", "int8_mm"]))
""",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:4] for line in lines[:2]] == [
        ["int8_mm", "acme/host", "ok", "native,"],
        ["int8_mm", "reference", "ok", "reference,"],
    ]
    assert "× the reference" in done.stdout
