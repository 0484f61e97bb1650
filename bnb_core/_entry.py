"""How this process came to import the package: the command line says itself what is wrong with a setting."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["is_command_line", "refused"]

# What is wrong with the settings in the environment, which the command line then leaves aside.
refused: str | None = None


def is_command_line() -> bool:
    """True in a process of `bnb-core` or `python -m bnb_core`, also while that imports the package."""
    if not sys.argv or sys.argv[0] != "-m":  # which stands there until the module is found
        return bool(sys.argv) and Path(sys.argv[0]).stem == "bnb-core"
    return sys.orig_argv[-len(sys.argv)].removeprefix("-m") == __package__
