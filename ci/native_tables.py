"""Writes the tables of native kernels from ops_registry/codebooks.py; with --check it only compares, for the test."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path

from bnb_core.ops_registry.codebooks import FOUR_BIT, as_table
from bnb_core.ops_registry.formats import QUANT_TYPES

TARGET = Path(__file__).parents[1] / "native" / "codebooks.h"

HEAD = """// Made from ops_registry/codebooks.py by `python ci/native_tables.py`.
#pragma once

#include <cstdint>

namespace bnb_core {

// values[c] is what code c stands for. A number with exactly p of the ascending boundaries below it has the code
// ascending[p]. Codes of equal values (the two zeros of FP4) are neighbours like others.
struct FourBit {
    float values[16];
    float boundaries[15];
    std::uint8_t ascending[16];
};

enum class QuantType { %(types)s };

// clang-format off
%(tables)s// clang-format on

constexpr const FourBit& four_bit(QuantType type) { return %(choice)s; }

}  // namespace bnb_core
"""


def rows(items: list[str]) -> str:
    """A list of 15 or 16 items, four to a line."""
    return "\n    {" + ",\n     ".join(", ".join(items[i : i + 4]) for i in range(0, 16, 4)) + "}"


def constant(name: str) -> str:
    return f"k{name.capitalize()}"


def literals(values: tuple[float, ...]) -> list[str]:
    return [re.sub(r"\.?0*p", "p", value.hex()) + "f" for value in values]


def table(name: str) -> str:
    values = FOUR_BIT[name]
    ascending = sorted(range(16), key=values.__getitem__)
    middles = [(as_table((values[a],)) + as_table((values[b],))) / 2 for a, b in pairwise(ascending)]
    boundaries = tuple(middle.item() for middle in middles)
    fields = (literals(values), literals(boundaries), [str(code) for code in ascending])
    return f"constexpr FourBit {constant(name)} = {{{','.join(rows(field) for field in fields)}}};\n\n"


def header() -> str:
    *others, last = QUANT_TYPES
    return HEAD % {
        "types": ", ".join(QUANT_TYPES),
        "tables": "".join(table(name) for name in QUANT_TYPES),
        "choice": "".join(f"type == QuantType::{name} ? {constant(name)} : " for name in others) + constant(last),
    }


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(None if TARGET.read_text() == header() else f"{TARGET} is stale: run python ci/native_tables.py")
    TARGET.write_text(header())
