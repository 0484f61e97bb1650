"""Optimizers over several processes: FSDP2, DTensor parameters, torch.distributed.checkpoint and DDP, on gloo."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import needs_fsdp2
from torch import Tensor, nn
from torch.nn import functional as F

from bnb_core import optim

dist = pytest.importorskip("torch.distributed", reason="torch.distributed is not there")
if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch is built without gloo", allow_module_level=True)

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint import state_dict as of_torch  # noqa: E402
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor  # noqa: E402
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module  # noqa: E402

WRAPPER = "__bnb_optimizer_quant_state__"
WHOLE_STATE = of_torch.StateDictOptions(full_state_dict=True)

# What processes import is imported once, where they can be forked from one that did nothing else.

# Rows of whole blocks, and rows that are not; numbers of rows that no number of processes divides; shards without rows.
SHAPES = {
    "whole": (9, 512),
    "cubic": (5, 2, 128),
    "row": (1, 256),
    "ragged": (7, 300),
    "flat": (1000,),
    "one": (1,),
    "scalar": (),
}
WHOLE = ("whole", "cubic", "row")


# -- parameters whose gradients are set by hand ------------------------------------------------------------------------


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW8bit": {"lr": 1e-2, "min_8bit_size": 200},
    "AdamW32bit": {"lr": 1e-2},
    "Lion8bit": {"lr": 1e-3, "min_8bit_size": 200},
    "AdEMAMix8bit": {"lr": 1e-2, "t_alpha": 10, "min_8bit_size": 200},
    "Adam8bit": {"lr": 1e-2, "min_8bit_size": 200, "block_wise": False},
}


def full(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parameters() -> nn.ParameterDict:
    generator = torch.Generator().manual_seed(1)
    return nn.ParameterDict([(name, torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()])


def sharded(world: int, placement: Any = None, copies: int = 1) -> nn.ParameterDict:
    """The same, by rows or, where they have so many dimensions, as `placement` says; several copies of all shards."""
    mesh = init_device_mesh("cpu", (copies, world // copies))

    def placed(p: Tensor) -> DTensor:
        at = placement if placement and p.ndim > placement.dim else Shard(0) if p.ndim else Replicate()
        return distribute_tensor(p.detach(), mesh, [Replicate(), at])

    return nn.ParameterDict([(name, placed(p)) for name, p in parameters().items()])


def optimizer_of(name: str, params: nn.ParameterDict, **options: Any) -> torch.optim.Optimizer:
    """A new one; torch's functions make its state where parameters have no gradients."""
    params.zero_grad()
    return getattr(optim, name)(params.values(), **OPTIMIZERS[name] | options)


def train(params: nn.ParameterDict, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 + step)
        for p in params.values():
            p.grad = torch.randn(p.shape, generator=generator) * 0.1
            if isinstance(p, DTensor):
                p.grad = distribute_tensor(p.grad, p.device_mesh, p.placements)
        optimizer.step()


def trained(name: str, params: nn.ParameterDict, steps: int = 3) -> torch.optim.Optimizer:
    optimizer = optimizer_of(name, params)
    train(params, optimizer, 0, steps)
    return optimizer


def kept(name: str) -> tuple[str, ...]:
    """The parameters of which a state is the same, bit for bit, however rows are shared out."""
    return tuple(SHAPES) if "32bit" in name else WHOLE if OPTIMIZERS[name].get("block_wise", True) else ()


def assert_same(name: str, params: nn.ParameterDict, wanted: nn.ParameterDict, exact: Any = None) -> None:
    """Bits where blocks are the same, else values, but for a few which had other codes."""
    for key, p in params.items():
        found, expected, lr = full(p.detach()), wanted[key].detach(), OPTIMIZERS[name]["lr"]
        if key in (kept(name) if exact is None else exact):
            assert torch.equal(found, expected), (name, key)
        else:
            assert (found - expected).abs().mean() <= 0.25 * lr, (name, key)


def assert_same_state(
    name: str, params: nn.ParameterDict, optimizer: Any, wanted: nn.ParameterDict, reference: Any
) -> None:
    """Codes and scales of parameters whose blocks are the same."""
    states, expected = optimizer.state_dict()["state"], reference.state_dict()["state"]
    for i, key in enumerate(params):
        assert states[i]["step"] == expected[i]["step"]
        if key in kept(name):
            assert states[i][WRAPPER].keys() == expected[i][WRAPPER].keys()
            for tensor, value in expected[i][WRAPPER].items():
                assert torch.equal(full(states[i][WRAPPER][tensor]).flatten(), value.flatten()), (name, key, tensor)


@pytest.mark.parametrize(("world", "copies"), [(2, 1), (3, 1), (4, 2)])
def test_steps_on_shards(world: int, copies: int, on_ranks: Any) -> None:
    """Scales are those of the local shard, and whole rows are what one process makes of them."""
    on_ranks(_steps_on_shards, world, copies)


def _steps_on_shards(world: int, copies: int) -> None:
    for name in OPTIMIZERS:
        params, wanted = sharded(world, copies=copies), parameters()
        optimizer, reference = trained(name, params), trained(name, wanted)
        assert_same(name, params, wanted)
        assert_same_state(name, params, optimizer, wanted, reference)
        for p in params.values():
            own, shard = optimizer.state[p], p.to_local()
            assert own["state1"].numel() == shard.numel() * (2 if "AdEMAMix" in name else 1)
            if "absmax2" in own:
                assert own["absmax2"].numel() == -(-shard.numel() // 256)


def test_saved_and_loaded_without_files(on_ranks: Any) -> None:
    on_ranks(_saved_and_loaded_without_files, 2)


def _saved_and_loaded_without_files(world: int) -> None:
    for name in OPTIMIZERS:
        _save_and_load_without_files(world, name)


def _save_and_load_without_files(world: int, name: str) -> None:
    params, wanted = sharded(world), parameters()
    optimizer, reference = trained(name, params), trained(name, wanted)
    gathered = of_torch.get_optimizer_state_dict(params, optimizer, options=WHOLE_STATE)
    one_piece = of_torch.get_optimizer_state_dict(wanted, reference)

    # Into one piece.
    for saved in (optimizer.state_dict(), gathered):
        plain = optimizer_of(name, wanted, lr=0.5)
        plain.load_state_dict(saved)
        assert_same_state(name, wanted, plain, wanted, reference)

    # Into shards.
    for saved in (optimizer.state_dict(), gathered, one_piece, reference.state_dict()):
        again = optimizer_of(name, params, lr=0.5)
        again.load_state_dict(copy.deepcopy(saved))
        assert again.param_groups[0]["lr"] == OPTIMIZERS[name]["lr"]
        assert_same_state(name, params, again, wanted, reference)
    for saved in (gathered, one_piece):
        again = optimizer_of(name, params, lr=0.5)
        of_torch.set_optimizer_state_dict(params, again, copy.deepcopy(saved), options=WHOLE_STATE)
        assert_same_state(name, params, again, wanted, reference)
    train(params, again, 3, 5)
    train(wanted, reference, 3, 5)
    assert_same(name, params, wanted)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, **options: bool) -> dict[str, Any]:
    saved = of_torch.get_state_dict(model, optimizer, options=of_torch.StateDictOptions(**options))
    return dict(zip(("model", "optim"), saved, strict=True))


def load(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    state = state_of(model, optimizer)
    dcp.load(state, checkpoint_id=folder)
    of_torch.set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])


def test_checkpoint_into_other_numbers_of_processes(on_ranks: Any, tmp_path: Path) -> None:
    on_ranks(_save, 2, tmp_path)
    for world in (1, 2, 3):
        on_ranks(_load, world, tmp_path)


def _save(world: int, folder: Path) -> None:
    for name in OPTIMIZERS:
        params = sharded(world)
        dcp.save(state_of(params, trained(name, params)), checkpoint_id=folder / name)


def _load(world: int, folder: Path) -> None:
    for name in OPTIMIZERS:
        params, wanted = sharded(world), parameters()
        reference, optimizer = trained(name, wanted), optimizer_of(name, params, lr=0.5)
        load(params, optimizer, folder / name)
        assert_same(name, params, wanted)
        assert_same_state(name, params, optimizer, wanted, reference)
        train(params, optimizer, 3, 6)
        train(wanted, reference, 3, 6)
        assert_same(name, params, wanted)


def test_placed_by_columns(on_ranks: Any) -> None:
    """As tensor parallelism does. Blocks are those of the local columns."""
    on_ranks(_placed_by_columns, 2)


def _placed_by_columns(world: int) -> None:
    for name in OPTIMIZERS:
        params, wanted = sharded(world, Shard(1)), parameters()
        optimizer, reference = trained(name, params), trained(name, wanted)
        exact = tuple(SHAPES) if "32bit" in name else ()
        assert_same(name, params, wanted, exact)
        for saved in (optimizer.state_dict(), reference.state_dict()):
            again = optimizer_of(name, params, lr=0.5)
            again.load_state_dict(copy.deepcopy(saved))
        train(params, again, 3, 5)
        train(wanted, reference, 3, 5)
        assert_same(name, params, wanted, exact)
        # From columns to rows.
        rows, wanted = sharded(world), parameters()
        by_rows, reference = optimizer_of(name, rows), trained(name, wanted, 5)
        by_rows.load_state_dict(again.state_dict())
        with torch.no_grad():
            for row, column in zip(rows.values(), params.values(), strict=True):
                row.copy_(column.redistribute(placements=row.placements))
        train(rows, by_rows, 5, 7)
        train(wanted, reference, 5, 7)
        assert_same(name, rows, wanted, exact)


def test_gradient_that_is_placed_otherwise(on_ranks: Any) -> None:
    on_ranks(_gradient_that_is_placed_otherwise, 2)


def _gradient_that_is_placed_otherwise(world: int) -> None:
    """Also one that is still on its way. Half a row is a block, so bits are the same however a parameter is placed."""
    mesh, rows, columns = init_device_mesh("cpu", (world,)), Shard(0), Shard(1)
    generator = torch.Generator().manual_seed(6)
    value, *gradients = (torch.randn(8, 256 * world, generator=generator) for _ in range(5))
    wanted = nn.Parameter(value.clone())
    reference = optim.AdamW8bit([wanted], min_8bit_size=0)
    for gradient in gradients:
        wanted.grad = gradient.clone()
        reference.step()
    for of_parameter, of_gradient in ((Replicate(), Partial()), (rows, Replicate()), (columns, rows), (rows, rows)):
        p = nn.Parameter(distribute_tensor(value.clone(), mesh, [of_parameter]))
        optimizer = optim.AdamW8bit([p], min_8bit_size=0)
        for gradient in gradients:
            summands = DTensor.from_local(gradient / world, mesh, [Partial()])
            # Newer torch has nothing to do there for summands, older refuses them.
            whole_or_shards = not of_gradient.is_partial()
            p.grad = summands.redistribute(placements=[of_gradient], async_op=True) if whole_or_shards else summands
            optimizer.step()
        assert torch.equal(p.full_tensor(), wanted), (of_parameter, of_gradient)


def test_beside_parameters_that_are_not_sharded(on_ranks: Any) -> None:
    on_ranks(_beside_parameters_that_are_not_sharded, 2)


def _beside_parameters_that_are_not_sharded(world: int) -> None:
    for name in ("AdamW8bit", "AdamW32bit"):
        params, wanted = sharded(world), parameters()
        for key in ("whole", "flat"):
            params[key] = parameters()[key]
        optimizer, reference = trained(name, params), trained(name, wanted)
        again = optimizer_of(name, params, lr=0.5)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(params, again, 3, 5)
        train(wanted, reference, 3, 5)
        assert_same(name, params, wanted, {*kept(name), "whole", "flat"})


def test_what_needs_whole_norms_is_refused(on_ranks: Any) -> None:
    on_ranks(_what_needs_whole_norms_is_refused, 2)


def _what_needs_whole_norms_is_refused(world: int) -> None:
    sentence = "expected {} for a sharded parameter, of whose norm each process knows its part"
    params = sharded(world)
    for cls, options, error in (
        (optim.LAMB, {}, "max_unorm is 1.0, " + sentence.format(0)),
        (optim.LARS, {"lr": 0.1, "momentum": 0.9}, "max_unorm is 0.02, " + sentence.format(0)),
        (optim.AdamW, {"percentile_clipping": 5}, "percentile_clipping is 5, " + sentence.format(100)),
        (optim.AdamW8bit, {"percentile_clipping": 5}, "percentile_clipping is 5, " + sentence.format(100)),
    ):
        optimizer = cls(params.values(), **options)
        with pytest.raises(ValueError, match=error):
            train(params, optimizer, 0, 1)
    optimizer = optim.AdamW8bit(params.values())
    train(params, optimizer, 0, 1)
    optimizer.param_groups[0]["percentile_clipping"] = 5
    with pytest.raises(ValueError, match="percentile_clipping is 5"):
        train(params, optimizer, 1, 2)


def test_foreign_state_of_shards_is_refused(on_ranks: Any) -> None:
    on_ranks(_foreign_state_of_shards_is_refused, 2)


def _foreign_state_of_shards_is_refused(world: int) -> None:
    params = sharded(world)
    optimizer = trained("AdamW8bit", params)
    for change, error in (
        (lambda s: s.pop("absmax2"), "expected step, state1, qmap1, absmax1, state2, qmap2, absmax2"),
        (lambda s: s.update(state2=s["state2"].full_tensor()[1:]), r"state2 is torch.uint8 \(8, 512\), expected"),
        (lambda s: s.update(absmax1=s["absmax1"].full_tensor()[1:]), "absmax1 has 16 scales, expected 18"),
    ):
        saved = copy.deepcopy(optimizer.state_dict())
        change(saved["state"][0][WRAPPER])
        with pytest.raises(ValueError, match=f"state of parameter 0.*{error}"):
            optimizer.load_state_dict(saved)


# -- a model -----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A layer of a transformer; rows have 256 elements, but for those of `down`."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(256), nn.LayerNorm(256)])
        self.attention, self.out = nn.Linear(256, 768), nn.Linear(256, 256)
        self.up, self.down = nn.Linear(256, 100), nn.Linear(100, 256)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (4, 64)).transpose(1, 2) for part in self.attention(self.norms[0](x)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    """A language model of 23 tokens. Of its factor only one process has anything."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tokens, self.block, self.norm = nn.Embedding(23, 256), Block(), nn.LayerNorm(256)
        self.head, self.factor = nn.Linear(256, 23), nn.Parameter(torch.ones(1))

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.head(self.norm(self.block(self.tokens(tokens)))) * self.factor
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


TOKENS = torch.randint(0, 23, (12, 10), generator=torch.Generator().manual_seed(4))


def sharded_model(world: int) -> Model:
    model, mesh = Model(), init_device_mesh("cpu", (world,))
    fully_shard(model.block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train_model(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, world: int = 1) -> Tensor:
    """The losses of the whole batch, of which each of so many processes has a part."""
    rank, losses = dist.get_rank() if world > 1 else 0, []
    for _ in range(steps):
        loss = model(TOKENS[rank::world])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach() / world)
        if world > 1:
            dist.all_reduce(losses[-1])
    return torch.stack(losses)


def optimizer_of_model(model: nn.Module, cls: Any = optim.AdamW8bit, lr: float = 1e-3) -> torch.optim.Optimizer:
    return cls(model.parameters(), lr=lr, **({"min_8bit_size": 200} if cls is optim.AdamW8bit else {}))


@needs_fsdp2
@pytest.mark.parametrize(("cls", "tolerance"), [(optim.AdamW8bit, 1e-3), (optim.AdamW32bit, 1e-5)])
def test_model_trains_to_the_same_losses(cls: Any, tolerance: float, on_ranks: Any) -> None:
    on_ranks(_model_trains_to_the_same_losses, 2, cls, tolerance)


def _model_trains_to_the_same_losses(world: int, cls: Any, tolerance: float) -> None:
    model, wanted = sharded_model(world), Model()
    losses = train_model(model, optimizer_of_model(model, cls), 30, world)
    expected = train_model(wanted, optimizer_of_model(wanted, cls), 30)
    assert expected[-1] < 0.1 * expected[0]
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0)


@needs_fsdp2
def test_model_goes_on_from_a_checkpoint(on_ranks: Any, tmp_path: Path) -> None:
    """Of two processes, in one, two and three, and in one without shards."""
    on_ranks(_save_model, 2, tmp_path)
    for world in (1, 2, 3):
        on_ranks(_load_model, world, tmp_path)
    on_ranks(_load_model_in_one_piece, 1, tmp_path)


def _save_model(world: int, folder: Path) -> None:
    model = sharded_model(world)
    optimizer = optimizer_of_model(model)
    train_model(model, optimizer, 10, world)
    dcp.save(state_of(model, optimizer), checkpoint_id=folder / "checkpoint")
    whole = state_of(model, optimizer, full_state_dict=True, cpu_offload=True)
    losses = train_model(model, optimizer, 10, world)
    if dist.get_rank() == 0:
        torch.save(whole, folder / "full.pt")
        torch.save(losses, folder / "losses.pt")


def _load_model(world: int, folder: Path) -> None:
    model = sharded_model(world)
    optimizer = optimizer_of_model(model, lr=0.5)
    load(model, optimizer, folder / "checkpoint")
    losses = train_model(model, optimizer, 10, world)
    torch.testing.assert_close(losses, torch.load(folder / "losses.pt"), rtol=1e-3, atol=0)


def _load_model_in_one_piece(world: int, folder: Path) -> None:
    dcp_to_torch_save(folder / "checkpoint", folder / "checkpoint.pt")
    for file in ("checkpoint.pt", "full.pt"):
        state, model = torch.load(folder / file, weights_only=True), Model()
        optimizer = optimizer_of_model(model, lr=0.5)
        of_torch.set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
        losses = train_model(model, optimizer, 10)
        torch.testing.assert_close(losses, torch.load(folder / "losses.pt"), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shards", [False, pytest.param(True, marks=needs_fsdp2)])
@pytest.mark.parametrize("cls", [optim.AdamW8bit, optim.AdamW32bit])
def test_data_parallel_with_accumulation(cls: Any, shards: bool, on_ranks: Any) -> None:
    """Gradients of parts of a batch, in several processes and one after the other, are those of the whole."""
    on_ranks(_data_parallel_with_accumulation, 2, cls, shards)


def _data_parallel_with_accumulation(world: int, cls: Any, shards: bool) -> None:
    wanted = Model()
    expected = train_model(wanted, optimizer_of_model(wanted, cls), 8)
    model = sharded_model(world) if shards else nn.parallel.DistributedDataParallel(Model())
    optimizer, rank = optimizer_of_model(model, cls), dist.get_rank()
    for step in range(8):
        first, last = (0.5 * model_loss for model_loss in accumulated(model, TOKENS[rank::world].chunk(2)))
        optimizer.step()
        optimizer.zero_grad()
        loss = first + last
        dist.all_reduce(loss)
        torch.testing.assert_close(loss / world, expected[step], rtol=1e-4, atol=0)


def accumulated(model: Any, parts: tuple[Tensor, ...]) -> list[Tensor]:
    """The losses of the parts of a batch; only after the last gradients are exchanged."""
    losses = []
    for i, part in enumerate(parts):
        waits = i + 1 < len(parts)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            synchronized = model.no_sync() if waits else nullcontext()
        else:
            model.set_requires_gradient_sync(not waits)
            synchronized = nullcontext()
        with synchronized:
            loss = model(part)
            (loss / len(parts)).backward()
        losses.append(loss.detach())
    return losses


@needs_fsdp2
@pytest.mark.parametrize("bits", [8, 32])
def test_tensor_parallel_and_sharded(bits: int, on_ranks: Any) -> None:
    on_ranks(_tensor_parallel_and_sharded, 4, bits)


def _tensor_parallel_and_sharded(world: int, bits: int) -> None:
    make = partial(optim.AdEMAMix, lr=1e-3, optim_bits=bits, min_8bit_size=200)
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
    torch.manual_seed(5)
    model, x, y = (
        nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 32)),
        torch.randn(8, 64),
        torch.randn(8, 32),
    )
    wanted = copy.deepcopy(model)
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["data"])

    def losses(of: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        result = []
        for _ in range(5):
            loss = F.mse_loss(of(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            result.append(loss.detach())
        return torch.stack(result)

    optimizer, reference = make(model.parameters()), make(wanted.parameters())
    tolerance = 1e-3 if bits == 8 else 1e-5
    torch.testing.assert_close(losses(model, optimizer), losses(wanted, reference), rtol=tolerance, atol=0)

    # From one piece into shards over one mesh, then over another one, and each back into one piece.
    optimizer.load_state_dict(reference.state_dict())
    other_mesh = init_device_mesh("cpu", (world,))
    rows = make([nn.Parameter(distribute_tensor(p.detach(), other_mesh, [Shard(0)])) for p in wanted.parameters()])
    rows.load_state_dict(optimizer.state_dict())
    expected, *found = (optim.AdEMAMix32bit(wanted.parameters()) for _ in range(3))
    for exact, saved in zip((expected, *found), (reference, optimizer, rows), strict=True):
        exact.load_state_dict(saved.state_dict())
    for p, state in expected.state.items():
        for key in ("state1", "state2"):
            difference = max((exact.state[p][key] - state[key]).abs().max() for exact in found)
            assert difference <= (0.02 * state[key].abs().max() if bits == 8 else 0), key
