"""Layers with 4-bit and int8 weights over several processes: FSDP2, FSDP1 and torch.distributed.checkpoint, on gloo."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import needs_fsdp2
from torch import Tensor, nn

import bnb_core

dist = pytest.importorskip("torch.distributed", reason="torch.distributed is not there")
if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch is built without gloo", allow_module_level=True)

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed import fsdp  # noqa: E402
from torch.distributed.checkpoint import state_dict as of_torch  # noqa: E402
from torch.distributed.fsdp.wrap import ModuleWrapPolicy  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402

FSDP1 = fsdp.FullyShardedDataParallel
WHOLE = of_torch.StateDictOptions(full_state_dict=True)
BF16 = torch.bfloat16
STORAGES = [torch.uint8, torch.bfloat16, torch.float16, torch.float32]
# FSDP2 of older torch makes parameters of all shards that require gradients at first, which no integers can.
INTEGERS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)
FSDP2_STORAGES = STORAGES if INTEGERS else STORAGES[1:]

# In and out. Two and three ranks share the codes of the second unevenly, whatever their storage.
SIZES = {"even": (64, 32), "uneven": (20, 30)}


# -- models ------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Frozen 4-bit layers, and a bias, a low-rank adapter and a norm that train."""

    def __init__(self, sizes: tuple[int, int], **quantizing: Any) -> None:
        super().__init__()
        inner, outer = sizes
        self.up = bnb_core.nn.LinearNF4(inner, outer, **quantizing)
        self.down = bnb_core.nn.LinearFP4(outer, inner, bias=False, **quantizing)
        self.lora_a = nn.Linear(inner, 4, bias=False)
        self.lora_b = nn.Linear(4, outer, bias=False)
        self.norm = nn.LayerNorm(inner)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(torch.tanh(self.up(h) + self.lora_b(self.lora_a(h))))


def model(sizes: tuple[int, int], dtype: torch.dtype = BF16, seed: int = 0, **quantizing: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    blocks = nn.Sequential(Block(sizes, **quantizing), Block(sizes, **quantizing)).to(dtype).to("cpu")
    # Codes of any value, many of them NaN or infinite where they are read as floats.
    for block in blocks:
        codes = block.up.weight.data.view(torch.uint8)
        codes.copy_(torch.randint(256, codes.shape))
        codes.view(-1)[1::6] = 0xFF
    return blocks


def shard(module: nn.Sequential, **options: Any) -> nn.Sequential:
    for block in module:
        fsdp.fully_shard(block, **options)
    return fsdp.fully_shard(module, **options)


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same keys and bytes; shards are put together."""
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        whole = found[key].full_tensor() if isinstance(found[key], DTensor) else found[key]
        assert (whole.dtype, whole.shape) == (tensor.dtype, tensor.shape), key
        assert torch.equal(as_bytes(whole), as_bytes(tensor)), key


def of_codes(state: dict[str, Any]) -> dict[str, Any]:
    """The entries of the quantized weights."""
    return {key: tensor for key, tensor in state.items() if "up.weight" in key or "down.weight" in key}


def batch(sizes: tuple[int, int], dtype: torch.dtype = BF16, step: int = 0) -> Tensor:
    """The same on each rank, so that the mean of the gradients is that of one process."""
    return torch.randn(4, sizes[0], generator=torch.Generator().manual_seed(50 + step)).to(dtype)


def train(module: nn.Module, sizes: tuple[int, int], dtype: torch.dtype = BF16, steps: int = 2) -> list[Tensor]:
    """The outputs, of which the losses are made."""
    # With a power of two a step rounds once, whether the loop is vectorized or not.
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.125)
    outputs = []
    for step in range(steps):
        out = module(batch(sizes, dtype, step))
        out.float().pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        outputs.append(out.detach())
    return outputs


def gather(module: nn.Module) -> None:
    """Leaves whole parameters in the layers, as a forward pass has them."""
    for part in module.modules():
        if isinstance(part, fsdp.FSDPModule):
            part.unshard()


# -- FSDP2 -------------------------------------------------------------------------------------------------------------


@needs_fsdp2
def test_training_on_shards(on_ranks: Any) -> None:
    """Outputs and steps are those of one process, bit for bit, and codes come through every gather unchanged."""
    for world in (2, 3):
        on_ranks(_training_on_shards, world)


def _training_on_shards(world: int) -> None:
    for sizes in SIZES.values():
        for storage in FSDP2_STORAGES:
            wanted = model(sizes, quant_storage=storage, compress_statistics=storage != torch.float16)
            assert storage == torch.uint8 or wanted[0].up.weight.isnan().any()
            module = shard(copy.deepcopy(wanted))
            weight = module[0].up.weight
            assert isinstance(weight, DTensor)
            assert weight.to_local().shape[0] <= -(-wanted[0].up.weight.shape[0] // world)
            # The mean of three gradients is rounded otherwise than one gradient.
            steps = 2 if world == 2 else 1
            for found, expected in zip(
                train(module, sizes, steps=steps), train(wanted, sizes, steps=steps), strict=True
            ):
                assert torch.equal(found, expected), (sizes, storage)
            select = dict if world == 2 else of_codes
            assert_same(select(module.state_dict()), select(wanted.state_dict()))
            gather(module)
            for block, other in zip(module, wanted, strict=True):
                assert torch.equal(as_bytes(block.up.weight), as_bytes(other.up.weight))
                assert block.up.weight.quant_state is block.up.quant_state
                assert block.up.quant_state == other.up.quant_state


@needs_fsdp2
def test_mixed_precision(on_ranks: Any) -> None:
    on_ranks(_mixed_precision, 2)


def _mixed_precision(world: int) -> None:
    """A policy casts what trains and never the codes: what would cast them is refused."""
    sizes = SIZES["uneven"]
    policy = fsdp.MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=torch.float32)
    for storage in (torch.uint8, BF16) if INTEGERS else (BF16,):
        wanted = model(sizes, torch.float32, quant_storage=storage)
        module = shard(copy.deepcopy(wanted), mp_policy=policy)
        assert torch.equal(train(module, sizes, torch.float32)[0], wanted.to(BF16)(batch(sizes)))
        assert_same(of_codes(module.state_dict()), of_codes(wanted.state_dict()))
    for storage in (torch.float16, torch.float32):
        module = shard(model(sizes, torch.float32, quant_storage=storage), mp_policy=policy)
        with pytest.raises(
            RuntimeError, match=f"stored as {storage}, were cast to torch.bfloat16, which destroys them"
        ):
            module(batch(sizes))


@needs_fsdp2
def test_what_is_not_quantized_yet_is_not_shared_out(on_ranks: Any) -> None:
    on_ranks(_what_is_not_quantized_yet_is_not_shared_out, 2)


def _what_is_not_quantized_yet_is_not_shared_out(world: int) -> None:
    module = fsdp.fully_shard(bnb_core.nn.LinearNF4(64, 32))
    with pytest.raises(RuntimeError, match="quantize before fully_shard"):
        module(torch.ones(2, 64))


class Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Tensor) -> Tensor:
        return self.layer(*args)


@needs_fsdp2
def test_layers_of_every_kind(on_ranks: Any) -> None:
    on_ranks(_layers_of_every_kind, 2)


def _layers_of_every_kind(world: int) -> None:
    torch.manual_seed(0)
    x, ids = torch.randn(3, 64), torch.tensor([0, 8, 2])
    routed = x, torch.tensor([[0, 2], [1, 3], [2, 0]]), torch.rand(3, 2)
    for make, given in (
        (lambda: bnb_core.nn.Linear8bitLt(64, 9, has_fp16_weights=False, threshold=2.0), (x,)),
        (lambda: bnb_core.nn.Linear8bitLt(64, 9), (x,)),
        (lambda: bnb_core.nn.Embedding4bit(9, 64, quant_storage=BF16), (ids,)),
        (lambda: bnb_core.nn.Embedding8bit(9, 64), (ids,)),
        (lambda: bnb_core.nn.Linear4bit(64, 9, compute_dtype=BF16), (x.to(BF16),)),
        (lambda: bnb_core.nn.Experts4bit(4, 64, 16, quant_storage=BF16), routed),
    ):
        wanted, other = Holder(make().to("cpu")), Holder(make().to("cpu"))
        if not (INTEGERS or all(p.is_floating_point() for p in wanted.parameters())):
            continue
        module = fsdp.fully_shard(copy.deepcopy(wanted))
        for _ in range(2):
            assert torch.equal(module(*given), wanted(*given))
        assert_same(of_torch.get_model_state_dict(module), wanted.state_dict())
        other = fsdp.fully_shard(other)
        of_torch.set_model_state_dict(other, of_torch.get_model_state_dict(module, options=WHOLE), options=WHOLE)
        assert torch.equal(other(*given), wanted(*given))


@needs_fsdp2
def test_tied_weights_and_moves(on_ranks: Any) -> None:
    on_ranks(_tied_weights_and_moves, 2)


def _tied_weights_and_moves(world: int) -> None:
    sizes = SIZES["uneven"]
    wanted = model(sizes, quant_storage=BF16)
    wanted[1].up.weight = wanted[0].up.weight
    module = fsdp.fully_shard(copy.deepcopy(wanted))
    assert module[0].up.weight is module[1].up.weight
    weight = module[0].up.weight
    # Neither a cast nor a move changes codes or scales.
    for cast in (nn.Module.half, nn.Module.double, lambda m: m.to("cpu", torch.float32), nn.Module.bfloat16):
        cast(module)
        assert module[0].up.weight is weight
        assert_same(of_codes(module.state_dict()), of_codes(wanted.state_dict()))
        assert module[0].norm.weight.dtype != BF16 or cast is nn.Module.bfloat16
    assert torch.equal(module(batch(sizes)), wanted(batch(sizes)))


@needs_fsdp2
def test_made_on_meta(on_ranks: Any) -> None:
    on_ranks(_made_on_meta, 2)


def _made_on_meta(world: int) -> None:
    """Shards of codes on meta, which a checkpoint fills."""
    sizes = SIZES["uneven"]
    wanted = model(sizes, quant_storage=BF16, compress_statistics=False)
    state = wanted.state_dict()
    for assign in (False, True):
        module = shard(model(sizes, seed=1, quant_storage=BF16, compress_statistics=False).to("meta"))
        if not assign:
            module.to_empty(device="cpu")
        of_torch.set_model_state_dict(module, dict(state), options=WHOLE)
        assert not any(p.is_meta for p in module.parameters())
        assert torch.equal(module(batch(sizes)), wanted(batch(sizes)))
        assert_same(module.state_dict(), state)


@needs_fsdp2
def test_shards_offloaded_to_the_cpu(on_ranks: Any) -> None:
    on_ranks(_shards_offloaded_to_the_cpu, 2)


def _shards_offloaded_to_the_cpu(world: int) -> None:
    sizes = SIZES["even"]
    wanted = model(sizes, quant_storage=BF16)
    module = shard(copy.deepcopy(wanted), offload_policy=fsdp.CPUOffloadPolicy(pin_memory=False))
    for found, expected in zip(train(module, sizes), train(wanted, sizes), strict=True):
        assert torch.equal(found, expected)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@needs_fsdp2
def test_state_dicts(on_ranks: Any) -> None:
    on_ranks(_state_dicts, 2)


def _state_dicts(world: int) -> None:
    for sizes in SIZES.values():
        for storage in FSDP2_STORAGES:
            quantizing = {"quant_storage": storage, "compress_statistics": storage != torch.float16}
            wanted, module = model(sizes, **quantizing), shard(model(sizes, **quantizing))
            whole = of_torch.get_model_state_dict(module, options=WHOLE)
            assert_same(whole, wanted.state_dict())
            plain = model(sizes, seed=1, **quantizing)
            plain.load_state_dict(whole)
            assert torch.equal(plain(batch(sizes)), wanted(batch(sizes)))
            # A gathered one before and after the first forward pass, and one of shards.
            for early in (True, False):
                other = shard(model(sizes, seed=1, **quantizing))
                if not early:
                    other(batch(sizes))
                of_torch.set_model_state_dict(other, copy.deepcopy(wanted.state_dict()), options=WHOLE)
                assert torch.equal(other(batch(sizes)), wanted(batch(sizes)))
                assert_same(other.state_dict(), wanted.state_dict())
            for assign in (False, True):
                other = shard(model(sizes, seed=1, **quantizing))
                other.load_state_dict(copy.deepcopy(module.state_dict()), assign=assign)
                assert torch.equal(other(batch(sizes)), wanted(batch(sizes)))
                assert_same(other.state_dict(), wanted.state_dict())


def test_what_does_not_load_into_shards(on_ranks: Any) -> None:
    on_ranks(_what_does_not_load_into_shards, 2)


def _what_does_not_load_into_shards(world: int) -> None:
    sizes, key = SIZES["even"], "0.up.weight"
    wanted = model(sizes, quant_storage=BF16)
    module = shard(model(sizes, seed=1, quant_storage=BF16))
    before, shards = copy.deepcopy(module.state_dict()), shard(model(sizes, quant_storage=BF16)).state_dict()
    with pytest.raises(
        RuntimeError, match=f"{key}: the checkpoint has a Tensor, the layer a DTensor: load with set_mo"
    ):
        module.load_state_dict(wanted.state_dict())
    with pytest.raises(RuntimeError, match=f"{key}: the checkpoint has a DTensor, the layer a Params4bit"):
        wanted.load_state_dict(shards)
    without = {name: tensor for name, tensor in shards.items() if not name.startswith(key + ".")}
    with pytest.raises(RuntimeError, match=f"{key}: the checkpoint has no statistics beside the codes"):
        module.load_state_dict(without)
    with pytest.raises(RuntimeError, match=f"{key}.absmax has shape"):
        module.load_state_dict(shards | {f"{key}.absmax": shards[f"{key}.absmax"][1:]})
    first = dist.get_rank() == 0
    from_first = of_torch.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    other = shard(model(sizes, seed=1, quant_storage=BF16))
    with nullcontext() if first else pytest.raises(RuntimeError, match=f"{key}: .*_rank0=True does not bring them"):
        of_torch.set_model_state_dict(other, wanted.state_dict() if first else {}, options=from_first)
    other = shard(model(sizes, quant_storage=torch.float16)).state_dict()
    with pytest.raises(RuntimeError, match=f"{key}: .* of torch.float16, the sharded weight .* of torch.bfloat16"):
        module.load_state_dict(other)
    codes = of_codes(module.state_dict())
    for name in [name for name in codes if name.startswith(key)]:
        assert torch.equal(as_bytes(full(codes[name])), as_bytes(full(before[name]))), name


def full(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@needs_fsdp2
def test_distributed_checkpoint_into_other_numbers_of_processes(on_ranks: Any, tmp_path: Path) -> None:
    on_ranks(_save, 2, tmp_path)
    for world in (1, 3):
        on_ranks(_load, world, tmp_path)


def _save(world: int, folder: Path) -> None:
    for name, sizes in SIZES.items():
        for storage in FSDP2_STORAGES:
            module = shard(model(sizes, quant_storage=storage))
            state = of_torch.get_model_state_dict(module)
            dcp.save(state, checkpoint_id=folder / f"{name}{storage}")


def _load(world: int, folder: Path) -> None:
    """Into weights that differ, but for the mean of the scales: its digits have to be as many, as torch takes sizes."""
    for name, sizes in SIZES.items():
        for storage in FSDP2_STORAGES:
            wanted = model(sizes, quant_storage=storage)
            module = shard(copy.deepcopy(wanted))
            state = of_torch.get_model_state_dict(module)
            for key, tensor in state.items():
                if key.endswith(("weight", "bias", "absmax")):
                    tensor.zero_()
            dcp.load(state, checkpoint_id=folder / f"{name}{storage}")
            of_torch.set_model_state_dict(module, state)
            assert_same(module.state_dict(), wanted.state_dict())
            assert torch.equal(module(batch(sizes)), wanted(batch(sizes)))


# -- FSDP1 -------------------------------------------------------------------------------------------------------------


def test_flat_parameters(on_ranks: Any) -> None:
    """With quant_storage in the dtype of the model, codes are a part of the flat parameter."""
    on_ranks(_flat_parameters, 2)


def _flat_parameters(world: int) -> None:
    warnings.simplefilter("ignore", FutureWarning)
    layers = bnb_core.nn.Linear4bit
    for sizes in SIZES.values():
        # Without the original parameters, FSDP wants what is frozen by itself.
        for separate, policy in ((True, ModuleWrapPolicy({Block})), (False, ModuleWrapPolicy({layers, Block}))):
            wanted, other = (model(sizes, seed=seed, quant_storage=BF16) for seed in (0, 1))
            for block in (*wanted, *other):
                block.up.bias.requires_grad_(separate)
            module = flat(copy.deepcopy(wanted), policy, separate)
            for found, expected in zip(train(module, sizes), train(wanted, sizes), strict=True):
                assert torch.equal(found, expected), (sizes, separate)
            state = wanted.state_dict()
            with FSDP1.state_dict_type(module, fsdp.StateDictType.FULL_STATE_DICT):
                assert_same(module.state_dict(), state)
            other = flat(other, policy, separate)
            for _ in range(2):
                with FSDP1.state_dict_type(other, fsdp.StateDictType.FULL_STATE_DICT):
                    other.load_state_dict(copy.deepcopy(state))
                    assert_same(other.state_dict(), state)
                assert torch.equal(other(batch(sizes)), wanted(batch(sizes)))
            with FSDP1.summon_full_params(other):
                assert_same(of_codes(other.state_dict()), of_codes(state))
    policy = ModuleWrapPolicy({Block})
    module = flat(
        model(sizes, torch.float32, quant_storage=torch.float32), policy, mixed_precision=fsdp.MixedPrecision(BF16)
    )
    with pytest.raises(RuntimeError, match=r"stored as torch.float32, were cast to torch.bfloat16"):
        module(batch(sizes))
    with pytest.raises(ValueError, match="Cannot flatten integer dtype"):
        flat(model(sizes), policy)


def flat(module: nn.Module, policy: ModuleWrapPolicy, separate: bool = True, **options: Any) -> FSDP1:
    device = torch.device("cpu")
    return FSDP1(module, auto_wrap_policy=policy, use_orig_params=separate, device_id=device, **options)
