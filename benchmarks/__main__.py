"""`python -m benchmarks`: measures, prints tables, writes JSON and a picture."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .peers import PEERS

QUICK_SCALE = 1 / 64
# Seconds a contestant: a median within a few per cent on a machine that does other things too, or a first impression.
SECONDS, QUICK_SECONDS = 0.6, 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for wrong use; a missed target is no failure."""
    parser = _parser()
    args = parser.parse_args(argv)
    scale = args.scale if args.scale is not None else QUICK_SCALE if args.quick else 1.0
    seconds = args.seconds if args.seconds is not None else QUICK_SECONDS if args.quick else SECONDS
    if not 0 < scale <= 1 or not seconds > 0:
        parser.error("--scale is above 0 and at most 1, --seconds above 0")
    # Peers with an OpenMP runtime of their own read it when they are loaded, and they are loaded when first needed.
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)

    from . import session
    from .works import Sizes, families

    chosen = families(Sizes(scale))
    names = [work.name for family in chosen for work in family.works]
    unknown = [pattern for pattern in args.work if not any(matches(name, [pattern]) for name in names)]
    if unknown:
        parser.error(f"no work is named {', '.join(unknown)}; see --list")
    chosen = [family.only(lambda name: matches(name, args.work)) for family in chosen]
    chosen = [family for family in chosen if family.works]
    if args.list:
        session.list_works(chosen)
        return 0
    try:
        session.run(
            chosen,
            session.Settings(
                scale=scale,
                seconds=seconds,
                threads=args.threads,
                force=tuple(args.force),
                kernels=tuple(args.kernels),
                peers=tuple(args.peers),
                best=args.best,
                output=args.output or Path("benchmark-output") / time.strftime("%Y-%m-%d-%H%M%S"),
            ),
        )
    except session.UsageError as error:
        parser.error(str(error))
    return 0


def matches(name: str, patterns: Sequence[str]) -> bool:
    """True where a pattern is a part of the name or, with wildcards, fits the whole of it; or there are no patterns."""
    return not patterns or any(pattern in name or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _peers(text: str) -> list[str]:
    names = _names(text)
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"no peer is named {name}; there are {', '.join(PEERS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed of bnb_core next to its peers.")
    parser.add_argument("work", nargs="*", help="parts of names, or patterns as 'linear4bit/*/M=1/bf16' (all)")
    parser.add_argument("--list", action="store_true", help="what there is to measure, and the targets")
    parser.add_argument("--quick", action="store_true", help="small sizes and short times; targets are for full ones")
    parser.add_argument("--scale", type=float, help="multiplies the large sizes, at most 1")
    parser.add_argument("--seconds", type=float, help=f"for each contestant of each work ({SECONDS})")
    parser.add_argument("--threads", type=int, help="of everybody; torch's default where it is not given")
    parser.add_argument("--force", type=_names, default=[], metavar="KERNELS", help="as BNB_CORE_FORCE: cpu/avx2")
    parser.add_argument(
        "--kernels", type=_names, default=[], metavar="KERNELS", help="ours that run as contestants too, with commas"
    )
    parser.add_argument("--peers", type=_peers, default=list(PEERS), help=f"with commas ({','.join(PEERS)})")
    parser.add_argument("--best", action="store_true", help="report best times, not medians: on a busy machine")
    parser.add_argument("--output", type=Path, help="folder for results.json, results.txt and results.png")
    return parser


if __name__ == "__main__":
    sys.exit(main())
