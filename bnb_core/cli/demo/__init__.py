"""`bnb-core demo`: a real language model quantized and compared, and a classifier trained with 8-bit AdamW.

What it needs beyond the library (the extra `demo`, and the package with the model) is imported when it runs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the demo to the parser of its subcommand."""
    parser.add_argument("--quick", action="store_true", help="about one minute: less text, shorter training")
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder of pictures and numbers (%(default)s)"
    )
    parser.add_argument(
        "--workdir", type=Path, help="folder that keeps the checkpoints, about 800 MB (else a temporary one, removed)"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="what the language model computes in (%(default)s: many CPUs are slow in bfloat16)",
    )
    parser.add_argument("--device", default="cpu", help="where the language model runs (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Runs the demo.

    Raises:
        needs.Missing: something that it needs is not on this machine.
    """
    from .needs import require_packages

    require_packages()
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: all files are on this machine
    from .session import demonstrate

    demonstrate(args)
    return 0
