"""Everything that is measured, a module for each family."""

from __future__ import annotations

from ..work import Family
from . import blockwise, fourbit, int8, linear4bit, linear8bit, optimizer, overhead
from .sizes import Sizes

__all__ = ["Sizes", "families"]


def families(sizes: Sizes) -> list[Family]:
    """All works at these sizes, in the order of the report."""
    modules = (optimizer, blockwise, fourbit, int8, linear4bit, linear8bit, overhead)
    return [family for module in modules for family in module.families(sizes)]
