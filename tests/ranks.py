"""Processes of one gloo group, for tests of what is sharded."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

needs_fsdp2 = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of torch < 2.7 is for GPUs only"
)
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., None]:
    """Calls a function, with the number of processes and its other arguments, in so many processes of one group."""
    if START == "forkserver":
        modules = ("distributed.fsdp", "distributed.checkpoint.state_dict", "distributed.tensor", "_dynamo")
        multiprocessing.set_forkserver_preload(["pytest", "bnb_core", *(f"torch.{module}" for module in modules)])
    groups = iter(range(100))

    def run(function: Callable[..., None], world: int, *args: Any) -> None:
        file = tmp_path / f"group{next(groups)}"
        mp.start_processes(_process, (function, world, file, args), nprocs=world, start_method=START)

    return run


def _process(rank: int, function: Callable[..., None], world: int, file: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=file.as_uri(), rank=rank, world_size=world)
    try:
        function(world, *args)
        dist.barrier()
    finally:
        dist.destroy_process_group()
