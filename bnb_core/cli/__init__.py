"""The command line: `python -m bnb_core` and the script `bnb-core`.

A command is a module here with `add_arguments(parser)` and `run(args) -> int`; it is imported when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from bnb_core import _entry
from bnb_core._version import __version__

from .console import CommandError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "info": "what is installed, which backends are loaded, which kernel serves which operator (the default)",
    "check": "train a step and run a 4-bit and an 8-bit layer on each device, and compare them with the reference",
    "conformance": "try each kernel of a device against the reference, then layers and optimizers; a report",
    "new-backend": "write the beginning of a backend: two kernels, their table, and their tests",
    "quantize": "quantize a model in safetensors files into a checkpoint that transformers loads",
    "explain": "the kernels that can serve an operator, and their limits",
    "demo": "the main job on a real language model: quantize it, compare quality and speed, fine-tune",
}
INTERRUPTED = 130  # as shells report the end by SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, 1 where a check failed, 2 for wrong use, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = _parser(arguments).parse_args(arguments)
    try:
        if _entry.refused is None:
            return _module(args.command).run(args)
        if args.command == "info":
            _module("info").run(args)
        return _complain(_entry.refused)
    except CommandError as error:
        return _complain(str(error))
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _complain(f"{error.filename or args.command}: {error.strerror or error}")
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bnb-core", description="k-bit quantization for PyTorch")
    parser.add_argument("--version", action="version", version=f"bnb_core {__version__}")
    parser.set_defaults(command="info")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:])
        command.set_defaults(command=name)
        if name in arguments[:1]:
            _module(name).add_arguments(command)
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f".{command.replace('-', '_')}", __name__)


def _complain(sentence: str) -> int:
    print(f"bnb-core: {sentence}", file=sys.stderr)
    return 2
