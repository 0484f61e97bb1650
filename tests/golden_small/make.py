"""Writes this folder's `vectors.safetensors` and `cases.json` from the full golden vectors.

    python tests/golden_small/make.py GOLDEN_DIR

The full set holds inputs and outputs of bitsandbytes 0.50.2 on a CPU; a selection stands here, so that a clone alone is
tested against it. A case names its operator, its arguments by position, the results and the arguments changed by the
call, and the rule of comparison (`test_golden.py` says what they mean). A tensor is a number into the other file.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SELECTED = {
    "q8": r"quant/(udyn\.fp16\.bs256$|numel(1|2|63|65)|0d|empty|bs100$|zero_block$|nan|inf|linear|fp8|all_codes)",
    "q4": r"quant/((nf4\.fp16\.bs64|fp4\.bf16\.bs512)$|\w+\.(K96|storage_(b|float32)|odd|num|zero|nan|inf|ties|all_))",
    "int8": r"^(vq|mm/(odd|3d)|vdequant|mm_dequant/(fp32|default)|scaled_mm/bf16|mixed/(.*16\.thr3|fp32.*(10|non)))",
    "gemm4": r"^(gemm/.*(fp32\.1x128$|3x128\.bias)|gemm_odd/.*(K33|K96|K80|M0))",
    "optim32": r"(fp32\.wd0\.1/step[14]|bf16\.wd0/step1)$",
    "optim8": r"^((adam|ademamix|lion|adagrad)\.fp32\.wd0\.1|(momentum|rmsprop)\.bf16\.wd0)/step2$",
}
RENAMED = {"int8_linear_matmul": "int8_mm"}


def rule(case: dict[str, Any]) -> str:
    """`exact`, `nearest`, `ulp`, `state`, or the largest relative difference as a number."""
    if case["op"] == "quantize_blockwise":
        return "nearest"  # the full set has some codes that are not the nearest
    return {"exact": "exact", "nan_exact": "exact", "close:ulp1": "ulp", "optim8": "state"}.get(
        case["compare"], case["compare"].removeprefix("close:")
    )


class Tensors:
    """Numbers for tensors, equal ones once."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}
        self._numbers: dict[tuple[Any, ...], int] = {}

    def number(self, tensor: torch.Tensor) -> int:
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        key = (tensor.dtype, tuple(tensor.shape), data)
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            self.kept[str(self._numbers[key])] = tensor.clone()
        return self._numbers[key]


def main(golden: Path, folder: Path) -> None:
    files = {name: load_file(golden / f"{name}.safetensors") for name in (*SELECTED, "tables")}
    manifest = json.loads((golden / "manifest.json").read_text())
    tensors = Tensors()

    def reference(file: str, value: Any) -> Any:
        if isinstance(value, dict) and "tensor" in value:
            return {"tensor": tensors.number(files[file][value["tensor"]])}
        return value

    cases = []
    for case in manifest["cases"]:
        file, name = case["file"], case["case"]
        if case["compare"] == "info" or case["op"] == "gemv_4bit":
            continue
        if not re.search(SELECTED[file], name):
            continue
        positions = {argument: i for i, (argument, _) in enumerate(case["args"])}
        cases.append(
            {
                "name": f"{RENAMED.get(case['op'], case['op'])}-{name}",
                "op": RENAMED.get(case["op"], case["op"]),
                "args": [reference(file, value) for _, value in case["args"]],
                "results": [reference(file, value) for value in case["out"]],
                "changed": {positions[a]: reference(file, v) for a, v in case.get("mutates", {}).items()},
                "rule": rule(case),
            }
        )
    tables = {name: tensors.number(table) for name, table in files["tables"].items()}
    save_file(tensors.kept, folder / "vectors.safetensors")
    (folder / "vectors.safetensors").chmod(0o644)
    text = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (folder / "cases.json").write_text(f'{{"tables":{json.dumps(tables)},\n"cases":[\n{text}\n]}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
