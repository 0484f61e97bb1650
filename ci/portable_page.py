"""Writes docs/portable-kernels.md: python ci/portable_page.py REPORT.json

The report is that of the kernels in Triton's interpreter, which takes some minutes:

    TRITON_INTERPRET=1 bnb-core conformance --device cpu --kernel cpu/triton --no-times --report REPORT.json
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "portable-kernels.md"
RECORD = ROOT / "tests" / "triton_resources.txt"

HEAD = """# Portable kernels

The kernels in Triton (`backends/triton`) serve NVIDIA, AMD and Intel GPUs. **None of these has run them yet.** This is
what they were tried on; `python ci/portable_page.py` writes it.

## In the interpreter

Triton's interpreter runs a kernel on a CPU, program by program. Each was compared with the reference on the operator's
cases, in its `.out` form, with strided arguments, with bytes written by hand, and by `opcheck`. "Share" is the largest
difference found, in parts of what the operator allows ([ops.md](ops.md)); at 0 every bit is the same.

| operator | fp32 | fp16 | bf16 | all attempts | refused | share |
|---|---|---|---|---|---|---|
"""

COMPILED = """
## Ahead of time

Compiled as a launch would compile them, for calls of the size of a model. Of each GPU: how many kernels, the most
registers of a thread, the most shared memory of a program, and the kernels that spill registers, with their bytes.
[The record](../tests/triton_resources.txt) has each kernel, and a test compares it for five of these GPUs.

| GPU | kernels | registers | shared memory | spills |
|---|---|---|---|---|
"""

LINE = re.compile(r"(\S+) .*?(\w+): registers (\d+) shared (\d+) spills (\d+)")


def tried(report: dict[str, Any]) -> list[str]:
    lines = []
    for kernel in report["kernels"]:
        aspects = kernel["aspects"].values()
        assert not kernel["failures"], kernel["op"]
        passed, refused = (sum(aspect[what] for aspect in aspects) for what in ("passed", "refused"))
        share = max(aspect["share"] for aspect in aspects)
        cases = [kernel["dtypes"].get(name, {}).get("passed", "") for name in ("float32", "float16", "bfloat16")]
        shown = " | ".join(map(str, [*cases, passed, refused or "", f"{share:.2f}" if share else "0"]))
        lines.append(f"| `{kernel['op']}` | {shown} |")
    return lines


def compiled(record: list[str]) -> list[str]:
    found: dict[str, list[tuple[str, int, int, int]]] = defaultdict(list)
    for line in record[1:]:
        match = LINE.match(line)
        assert match, line
        name, target, *numbers = match.groups()
        registers, shared, spills = map(int, numbers)
        found[target].append((name, registers, shared, spills))
    lines = []
    for target, kernels in found.items():
        spilling = sorted({f"`{name}` {spills}" for name, _, _, spills in kernels if spills})
        registers, shared = (max(kernel[i] for kernel in kernels) for i in (1, 2))
        lines.append(f"| {target} | {len(kernels)} | {registers} | {shared / 1024:.0f} KiB | {', '.join(spilling)} |")
    return lines


def main() -> int:
    report = json.loads(Path(sys.argv[1]).read_text())
    record = RECORD.read_text().splitlines()
    machine = f"\nThe reference and the interpreter ran on: {', '.join(report['machine'].values())}, {record[0]}.\n"
    TARGET.write_text(
        HEAD + "\n".join(tried(report)) + "\n" + machine + COMPILED + "\n".join(compiled(record)) + "\n",
        encoding="utf-8",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
