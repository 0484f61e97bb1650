"""What a call looks like: all that a check or a limit may read of its arguments, as one value that can be a key.

Of a tensor that is `READ` below, never its data, its strides or its address; of everything else the value. Values that
are equal across types (1, 1.0 and True) cannot meet: the dispatcher hands a kernel the type that the schema says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["READ", "signature_of"]

# What a check or a limit may read of a tensor; `ndim` and `numel()` follow from the shape, `itemsize` from the dtype.
READ = ("dtype", "shape", "ndim", "device")

_TENSOR = "{0}.dtype, {0}.shape, {0}.device"
_TENSORS = "tuple([(t.dtype, t.shape, t.device) for t in {0}])"

# Type in the schema → what of an argument goes into the signature, and whether autograd would record it.
_FORMS = {
    "Tensor": (_TENSOR, "{0}.requires_grad"),
    "Optional[Tensor]": (f"None if {{0}} is None else ({_TENSOR})", "({0} is not None and {0}.requires_grad)"),
    "List[Tensor]": (_TENSORS, "any([t.requires_grad for t in {0}])"),
    "Optional[List[Tensor]]": (
        f"None if {{0}} is None else {_TENSORS}",
        "({0} is not None and any([t.requires_grad for t in {0}]))",
    ),
    "List[int]": ("tuple({0})", ""),
    "Optional[int]": ("{0}", ""),
    "int": ("{0}", ""),
    "float": ("{0}", ""),
    "bool": ("{0}", ""),
    "str": ("{0}", ""),
}


def signature_of(arguments: Sequence[Any], unread: Sequence[str] = ()) -> Callable[..., tuple[Any, ...]]:
    """The function that makes the signature of a call with these arguments, those of a parsed schema.

    unread: names of arguments that are left out. The first item of a signature tells whether autograd would record
    what is done to the tensors. A symbolic size makes a signature that cannot be hashed.
    """
    # One expression, compiled from the schema as dataclasses compile theirs: a loop over the arguments takes twice as
    # long, and this runs in every call.
    forms = [(a.name, *_FORMS[str(a.type)]) for a in arguments]
    recorded = " or ".join(form.format(name) for name, _, form in forms if form)
    read = ", ".join(form.format(name) for name, form, _ in forms if name not in unread)
    source = f"lambda {', '.join(name for name, _, _ in forms)}: (is_grad_enabled() and ({recorded}), {read})"
    function: Callable[..., tuple[Any, ...]] = eval(source, {"is_grad_enabled": torch.is_grad_enabled})
    return function
