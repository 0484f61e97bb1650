"""One token of a Llama-shaped model in NF4, beside the same in bf16 and with bitsandbytes' layers, in microseconds.

    python -m benchmarks.decoding [--device cuda] [--blocks 4] [--hidden 4096] [--context 512] [--rounds 50]

Random weights, a full cache of keys and values. On CUDA a step is a graph, so that only the device counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import bnb_core

from .gpu import count, here, measured, peer_package

HEAD = 128  # elements of a head
MakeLinear = Callable[[int, int], nn.Module]


class Block(nn.Module):
    """Attention of grouped queries over a cache, and a gated network, each behind a norm."""

    def __init__(self, linear: MakeLinear, hidden: int, context: int) -> None:
        super().__init__()
        self.heads, self.groups = hidden // HEAD, max(1, hidden // HEAD // 4)
        inner = hidden * 7 // 2
        self.norms = nn.ModuleList(nn.RMSNorm(hidden, dtype=torch.bfloat16) for _ in range(2))
        self.qkv = linear(hidden, (self.heads + 2 * self.groups) * HEAD)
        self.out, self.up, self.down = linear(hidden, hidden), linear(hidden, 2 * inner), linear(inner, hidden)
        self.cache = nn.Buffer(torch.randn(2, 1, self.groups, context, HEAD, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).split([n * HEAD for n in (self.heads, self.groups, self.groups)], -1)
        keys, values = self.cache
        keys[:, :, -1], values[:, :, -1] = (t.view(1, self.groups, HEAD) for t in (k, v))
        seen = F.scaled_dot_product_attention(q.view(1, self.heads, 1, HEAD), keys, values, enable_gqa=True)
        x = x + self.out(seen.reshape(x.shape))
        gate, up = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def step_of(linear: MakeLinear, options: argparse.Namespace) -> Callable[[], object]:
    """A token through a model of such layers."""
    torch.manual_seed(0)
    with options.device:  # a CPU takes half a minute for the first weights
        blocks = [Block(linear, options.hidden, options.context) for _ in range(options.blocks)]
    model = nn.Sequential(*blocks).to(options.device).requires_grad_(False)
    x = torch.randn(1, 1, options.hidden, dtype=torch.bfloat16, device=options.device)
    if options.device.type != "cuda":
        return lambda: model(x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        model(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        model(x)

    def replay() -> object:
        graph.replay()
        return model, x  # the graph reads their memory, and does not keep it

    return replay


def contestants(device: torch.device) -> dict[str, MakeLinear]:
    """Ways to make a layer."""
    bf16 = torch.bfloat16
    found: dict[str, MakeLinear] = {
        "bnb_core NF4": lambda n, m: bnb_core.nn.LinearNF4(n, m, bias=False, compute_dtype=bf16),
        "torch bf16": lambda n, m: nn.Linear(n, m, bias=False, dtype=bf16),
    }
    if (peer := peer_package(device)) is not None:
        found["bitsandbytes NF4"] = lambda n, m: peer.nn.LinearNF4(n, m, bias=False, compute_dtype=bf16)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoding", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--device", type=here, default="cuda")
    for name, default in {"blocks": 4, "hidden": 4096, "context": 512, "rounds": 50}.items():
        parser.add_argument(f"--{name}", type=count, default=default)
    options = parser.parse_args(arguments)
    if options.hidden % HEAD:
        parser.error(f"--hidden is {options.hidden}, expected a multiple of {HEAD}")
    with torch.inference_mode():
        steps = {name: step_of(linear, options) for name, linear in contestants(options.device).items()}
        times = measured(steps, options.device, options.rounds)
    table = Table("a token", "microseconds", "of bf16")
    for name, found in times.items():
        table.add_row(name, f"{found:.0f}", f"{found / times['torch bf16']:.2f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
