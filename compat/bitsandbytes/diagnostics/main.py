"""What `python -m bitsandbytes` prints."""

from __future__ import annotations

import bnb_core.cli

from .._version import __version__

__all__ = ["main"]


def main() -> int:
    """Versions, backends and kernels, then a training step and two layers on each device; the exit status."""
    print(f"bitsandbytes {__version__}: the names of bitsandbytes over bnb_core")  # noqa: T201
    return bnb_core.cli.main(["info"]) or bnb_core.cli.main(["check"])
