"""The simulated accelerator: tensors in the host's memory with another device's name, computed by the CPU.

A tensor changes its device by a new label in the header of its DLPack capsule; the memory is shared. Every operation of
torch goes through `_on_host`, which relabels tensors on the way in and out.

A real device has not all operations of torch. In strict mode, from the environment (`BNB_CORE_ACME_STRICT=1`) or by
`strict()`, this one has those of the table `OPERATIONS`, and refuses others.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["COUNT", "NAME", "OPERATIONS", "on_device", "on_host", "start", "strict"]

NAME, COUNT = "acme", 2

# What the layers and optimizers of bnb_core need of torch beside the kernels of this backend, by purpose. `_copy_from`
# and `set_`, which torch has no composition for either, are further down.
OPERATIONS = {
    "memory": "empty empty_strided resize_ fill_ zero_ _local_scalar_dense",
    "views": "as_strided view _reshape_alias",
    "products of matrices": "mm addmm",
    "arithmetic": "add sub mul div neg abs sign sqrt pow expm1",
    "comparisons and masks": "lt eq ne gt ge le clamp where masked_fill_ bitwise_and bitwise_or bitwise_not",
    "reductions": "sum amax all any",
    "rows": "index_select cat",
    "experts": "index scatter silu",
    "opcheck of torch": "isnan",
    "a network around the layers": "relu threshold_backward mse_loss mse_loss_backward",
    "the reference, for embeddings whose rows are not whole blocks": "arange floor_divide remainder __rshift__",
    "the reference, for optimizers with a scale per tensor": "sort searchsorted bucketize",
}
_implemented = {name for names in OPERATIONS.values() for name in names.split()}
_strict = os.environ.get("BNB_CORE_ACME_STRICT", "0") not in ("", "0")


@contextmanager
def strict() -> Iterator[None]:
    """Inside, an operation of torch that is not in `OPERATIONS` raises NotImplementedError."""
    global _strict
    before, _strict = _strict, True
    try:
        yield
    finally:
        _strict = before


# Device types of DLPack; torch takes the second for PrivateUse1.
_CPU, _EXTENSION = 1, 12

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def on_host(tensor: Tensor) -> Tensor:
    """The same memory as a tensor of the CPU."""
    return _relabelled(tensor, _CPU, 0)


def on_device(tensor: Tensor, index: int) -> Tensor:
    """The same memory as a tensor of a device."""
    return _relabelled(tensor, _EXTENSION, index)


def _relabelled(tensor: Tensor, kind: int, index: int) -> Tensor:
    capsule = torch._C._to_dlpack(tensor.detach())
    # DLManagedTensor begins with a pointer to the data; then come the device's type and index.
    header = (ctypes.c_int32 * 2).from_address(_pointer_of(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p))
    header[0], header[1] = kind, index
    return torch._C._from_dlpack(capsule)


def _is_here(value: Any) -> bool:
    return isinstance(value, (Tensor, torch.UntypedStorage, torch.device)) and _place(value).type == NAME


def _place(value: Any) -> torch.device:
    place: torch.device = value if isinstance(value, torch.device) else value.device
    return place


def _on_host(op: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation of torch on aliases of its tensors."""
    index = next((_place(value).index or 0 for value in tree_leaves((args, kwargs)) if _is_here(value)), 0)
    if _strict and op._schema.name.removeprefix("aten::") not in _implemented:
        raise NotImplementedError(f"{op._schema.name} is not implemented on {NAME}:{index}")
    aliases: list[tuple[Tensor, Tensor]] = []
    written: list[tuple[Tensor, Tensor]] = []

    def enter(value: Any, argument: Any) -> Any:
        if not _is_here(value):
            # A number in the place of a tensor comes as a number.
            number = isinstance(value, (int, float)) and str(argument.type) == "Tensor"
            return torch.tensor(value) if number else value
        if isinstance(value, torch.device):
            return torch.device("cpu")
        alias = on_host(value)
        if argument.alias_info is not None and argument.alias_info.is_write:
            # A result may be resized, which memory that another tensor owns cannot.
            alias = alias.clone()
            written.append((alias, value))
        aliases.append((alias, value))
        return alias

    def leave(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        own = next((own for alias, own in aliases if alias is value), None)
        return on_device(value, index) if own is None else own

    named = {argument.name: argument for argument in op._schema.arguments}
    args = [tree_map(partial(enter, argument=a), value) for value, a in zip(args, named.values(), strict=False)]
    kwargs = {name: tree_map(partial(enter, argument=named[name]), value) for name, value in kwargs.items()}
    result = op(*args, **kwargs)
    for alias, own in written:
        if alias.shape == own.shape:
            on_host(own).copy_(alias)
        else:
            own.data = on_device(alias, index)
    return tree_map(leave, result)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    host = on_host(target) if _is_here(target) else target
    host.copy_(on_host(source) if _is_here(source) else source)
    return target


def _set_storage(tensor: Tensor, storage: torch.UntypedStorage, *place: Any) -> Tensor:
    """The CPU's: what it does to a tensor's header is the same on every device."""
    place = place or (0, (storage.nbytes() // tensor.element_size(),), (1,))
    op = torch.ops.aten.set_.source_Storage_storage_offset
    return op._op_dk(torch._C.DispatchKey.CPU, tensor, storage, *place)


def _moved(storage: torch.UntypedStorage, index: int) -> torch.UntypedStorage:
    """A storage of the CPU as one of a device."""
    return on_device(torch.empty(0, dtype=torch.uint8).set_(storage), index).untyped_storage()


def _restored(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    """A storage that `torch.load` read, where it belongs on a device."""
    here = location.partition(":")[0] == NAME
    return _moved(storage, torch.device(location).index or 0) if here else None


_clone_elsewhere = torch.UntypedStorage.clone


def _cloned(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """What `copy.deepcopy` asks of a storage."""
    return _moved(storage.cpu(), storage.device.index) if _is_here(storage) else _clone_elsewhere(storage)


_libraries: list[torch.library.Library] = []


def start() -> None:
    """Makes the device known to torch, once. Raises ImportError where torch is older than 2.9."""
    if _libraries:
        return
    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        raise ImportError(f"torch {torch.__version__} has no accelerators in Python, expected 2.9 or newer")

    class Device(backend_registration._DummyBackendModule):  # type: ignore[misc]  # torch's, not typed
        def device_count(self) -> int:
            return COUNT

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.float16, torch.bfloat16]

        def get_rng_state(self, device: object = None) -> Tensor:
            return torch.get_rng_state()

        def set_rng_state(self, state: Tensor, device: object = None) -> None:
            torch.set_rng_state(state)

    setup(NAME, backend_module=Device())
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(_on_host, "PrivateUse1")
    aten.impl("_copy_from", _copy_from, "PrivateUse1")
    for overload in ("source_Storage", "source_Storage_storage_offset"):
        aten.impl(f"set_.{overload}", _set_storage, "PrivateUse1")
    # In the place of torch's own, which would ask C++ for an allocator of the device; it has none.
    torch.serialization.register_package(15, lambda storage: None, _restored)
    torch.UntypedStorage.clone = _cloned  # type: ignore[method-assign]
    _libraries.extend((everything, aten))
