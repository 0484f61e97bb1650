"""The example backend in a package of its own, and its simulated accelerator: found, used, composed, isolated."""

from __future__ import annotations

import subprocess
from pathlib import Path

import installed
import pytest
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
    assert ["acme", "loaded", "2"] in [line[:3] for line in lines]
    table = {line[0]: line[-1] for line in lines if line and line[0] in ("dequantize_4bit", "gemm_4bit", "int8_mm")}
    assert table == {"dequantize_4bit": "acme/host", "gemm_4bit": "composed", "int8_mm": "reference"}


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


def test_what_it_does_not_have_runs_on_the_reference_and_says_so(site: Path) -> None:
    program = """
layer = bnb_core.nn.Linear8bitLt(64, 32, has_fp16_weights=False, threshold=6.0).to("acme")
layer(torch.randn(2, 64, device="acme"))
"""
    done = run(site, program, BNB_CORE_FALLBACK="error")
    assert "FallbackError: bnb_core::int8_vectorwise_quant on acme runs on the slow reference" in done.stderr
    passes(site, program, BNB_CORE_FALLBACK="allow")


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


def test_its_kernels_conform(site: Path) -> None:
    done = run(
        site,
        """
from bnb_core.cli import main
raise SystemExit(main(["conformance", "--device", "acme", "--op", "dequantize_4bit", "--op", "embedding_4bit"]))
""",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()[:2]] == [
        ["dequantize_4bit", "acme/host", "ok"],
        ["embedding_4bit", "composed", "ok"],
    ]
