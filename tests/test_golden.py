"""Inputs and outputs of bitsandbytes 0.50.2: a selection always, all of them where the full set is at hand.

Rules of comparison in `golden_small/cases.json`:
    exact     the same dtype, shape and values, NaN like NaN
    nearest   of quantize_blockwise: the same scales; codes at least as near to the value (the public package finds them
              by a table of 65536 bins, which are not always the nearest)
    ulp       at most one unit in the last place of a 16-bit result, 2e-6 of the largest value for fp32
    state     8-bit optimizer: codes at most one step or 4e-5 of absmax apart for the same reason, the rest as `ulp`
    1e-5 …    largest difference over largest value
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bnb_core
from bnb_core.ops_registry import codebooks

SMALL = Path(__file__).parent / "golden_small"
FULL = Path(__file__).parents[2] / "shared" / "golden"

_loaded = json.loads((SMALL / "cases.json").read_text())
VECTORS = load_file(SMALL / "vectors.safetensors")
CASES: list[dict[str, Any]] = _loaded["cases"]
TABLES: dict[str, int] = _loaded["tables"]


def value_of(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return (
            VECTORS[str(value["tensor"])].to(device, copy=True) if "tensor" in value else getattr(torch, value["dtype"])
        )
    return value


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    if not want.numel():
        return 0.0
    return float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-30))


def ulps(got: torch.Tensor, want: torch.Tensor) -> int:
    """Largest distance of 16-bit numbers, counted in representable numbers."""

    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = x.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -32768 - bits, bits)

    return int((ordered(got) - ordered(want)).abs().max()) if want.numel() else 0


def equal(got: torch.Tensor, want: torch.Tensor) -> bool:
    if want.is_floating_point():
        return torch.equal(got.double().nan_to_num(7e30), want.double().nan_to_num(7e30))
    return torch.equal(got, want)


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return relative(got, want) <= 2e-6 or (want.dtype in (torch.float16, torch.bfloat16) and ulps(got, want) <= 1)


def same_bytes(got: torch.Tensor, want: torch.Tensor) -> bool:
    return torch.equal(*(x.contiguous().reshape(-1).view(torch.uint8) for x in (got, want)))


def compare(
    case: dict[str, Any], got: torch.Tensor | None, want: torch.Tensor | None, code: torch.Tensor | None
) -> bool:
    if got is None or want is None:
        return got is want
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    got = got.cpu()
    rule = case["rule"]
    if rule == "state" and want.dtype == torch.uint8 and code is not None:
        steps = (got.int() - want.int()).abs()
        return bool(((steps <= 1) | ((code[got.long()] - code[want.long()]).abs() <= 4e-5)).all())
    if rule in ("ulp", "state"):
        return close(got, want)
    if rule in ("exact", "nearest"):
        return same_bytes(got, want) if case["op"] == "quantize_4bit" and want.ndim == 2 else equal(got, want)
    return relative(got, want) <= float(rule)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_case(case: dict[str, Any], device: torch.device) -> None:
    args = [value_of(value, device) for value in case["args"]]
    results = getattr(torch.ops.bnb_core, case["op"])(*args)
    results = () if results is None else results if isinstance(results, tuple) else (results,)
    expected = [value_of(value, torch.device("cpu")) for value in case["results"]]
    if case["rule"] == "nearest":
        A, code, blocksize = args
        assert equal(results[1].cpu(), expected[1])
        assert at_least_as_near(A.cpu(), results[0].cpu(), expected[0], expected[1], code.cpu(), blocksize)
        return
    for got, want in zip(results, expected, strict=True):
        assert compare(case, got, want, None)
    tables = [a.cpu() for a in args if isinstance(a, torch.Tensor) and a.dtype == torch.float32 and a.shape == (256,)]
    for position, value in case["changed"].items():
        argument = bnb_core.ops_registry.OPS[case["op"]].parameters[int(position)]
        code = tables[1 if argument == "state2" else 0] if tables else None
        assert compare(case, args[int(position)], value_of(value, torch.device("cpu")), code), argument


def at_least_as_near(
    A: torch.Tensor, got: torch.Tensor, want: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor, blocksize: int
) -> bool:
    scale = absmax.repeat_interleave(blocksize)[: A.numel()].double()
    t = torch.where(scale > 0, A.reshape(-1).double() / scale, 0.0)
    error, allowed = ((code.double()[q.reshape(-1).long()] - t).abs() for q in (got, want))
    return bool((error <= allowed + 1e-7).all())


@pytest.mark.parametrize("name", TABLES)
def test_codebook_equals_golden(name: str) -> None:
    """Every bit, the sign of zeros too."""
    got, want = codebook(name), VECTORS[str(TABLES[name])]
    assert torch.equal(got.view(torch.int32), want.view(torch.int32))


def codebook(name: str) -> torch.Tensor:
    """The table that a golden name such as `dynamic_map.signed.8bit` or `fp8_map.e4m3` stands for."""
    kind, *words = name.split(".")
    signed = "unsigned" not in words
    bits = next((int(word[0]) for word in words if word.endswith("bit")), 8)
    if kind == "get_4bit_type":
        return codebooks.four_bit(words[0])
    if kind == "dynamic_map":
        return codebooks.dynamic_map(signed, bits - 1, bits)
    if kind == "linear_map":
        return codebooks.linear_map(signed, bits, add_zero="add_zero=False" not in words)
    if kind == "normal_map":
        return codebooks.normal_map(use_extra_value="use_extra_value=False" not in words)
    exponent, precision = int(words[-1][1]), int(words[-1][3])
    return codebooks.fp8_map(signed, exponent, precision, int(signed) + exponent + precision)


@pytest.mark.skipif(not FULL.is_dir(), reason="the full set of golden vectors is not beside the repository")
def test_all_golden_vectors() -> None:
    path = os.pathsep.join([str(Path(bnb_core.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, str(FULL / "check_golden.py"), "--module", "bnb_core", "--ns", "bnb_core"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
