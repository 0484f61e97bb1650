"""Linear layers that train in int8."""

from functools import partial

from torch.nn import Linear as StandardLinear

from bnb_core.nn import SwitchBackLinear, SwitchBackLinearGlobal, SwitchBackLinearVectorwise

__all__ = [
    "StandardLinear",
    "SwitchBackLinear",
    "SwitchBackLinearGlobal",
    "SwitchBackLinearGlobalMemEfficient",
    "SwitchBackLinearVectorwise",
]

SwitchBackLinearGlobalMemEfficient = partial(SwitchBackLinear, mem_efficient=True)
