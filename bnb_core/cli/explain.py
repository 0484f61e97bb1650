"""`bnb-core explain OP`: what an operator is and which kernels can serve it."""

from __future__ import annotations

import argparse
import difflib

from bnb_core.ops_registry import OPS, explain

from .console import CommandError, device_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The operator, and optionally a device."""
    parser.add_argument("op", metavar="OP", help="name of an operator, as quantize_4bit")
    parser.add_argument("--device", help="a device type, as cuda; default: every device that has kernels")


def run(args: argparse.Namespace) -> int:
    """Prints the operator's documentation and its kernels, best first."""
    name = args.op.removeprefix("bnb_core::")
    if name not in OPS:
        near = difflib.get_close_matches(name, OPS, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(OPS)}"
        raise CommandError(f"there is no operator {name}; {hint}")
    device = None if args.device is None else device_of(args.device, here=False).type
    print(OPS[name].doc, end="\n\n")
    explain(name, device=device)
    return 0
