"""The loss curves of the optimizers, in their quick form."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def packages():
    for package in ("sklearn", "matplotlib"):
        pytest.importorskip(package)


def test_command_trains_with_each_optimizer_and_writes_what_it_found(tmp_path):
    command = [sys.executable, "-m", "benchmarks.curves", "--quick", "--threads", "1", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "curves.json").read_text())
    assert [curve["task"] for curve in found["curves"]] == ["text"] * 3 + ["digits"] * 3
    for name in ("text", "digits"):
        torchs, ours, ours_8bit = (curve for curve in found["curves"] if curve["task"] == name)
        assert [curve["optimizer"] in run.stdout for curve in (torchs, ours, ours_8bit)] == [True] * 3
        for seed, losses in enumerate(torchs["losses"]):
            assert losses[-1] < 0.8 * losses[0]
            assert ours["losses"][seed] == pytest.approx(losses, rel=1e-4)
            assert ours_8bit["losses"][seed] == pytest.approx(losses, rel=1e-3)
        assert ours["test_losses"] == pytest.approx(torchs["test_losses"], rel=1e-4)
        assert ours_8bit["test_losses"] == pytest.approx(torchs["test_losses"], rel=1e-3)
        assert 8 <= ours["state_bytes"] / ours["parameters"] < 8.01
        assert 2 <= ours_8bit["state_bytes"] / ours["parameters"] < 2.5


def test_transformer_does_not_see_what_it_is_to_predict():
    from benchmarks.curves import QUICK, Transformer

    torch.manual_seed(0)
    model = Transformer(QUICK)
    x = torch.randint(256, (2, QUICK.context))
    changed = x.clone()
    changed[:, 20:] = 255 - changed[:, 20:]
    with torch.no_grad():
        assert torch.allclose(model(x)[:, :20], model(changed)[:, :20], atol=1e-5)
        assert not torch.allclose(model(x)[:, 20:], model(changed)[:, 20:], atol=1e-2)


def test_every_seed_has_its_own_batches_and_all_optimizers_the_same():
    from benchmarks.curves import QUICK, Curve, tasks, train

    for task in tasks(replace(QUICK, text_steps=2, digits_steps=2)):
        first, second = (Curve(task.name, "torch AdamW") for _ in range(2))
        for seed in (0, 1):
            train(task, seed, [first, second], lambda _: None)
        assert first.losses == second.losses
        assert first.losses[0] != first.losses[1]
