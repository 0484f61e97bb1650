"""Linear layers of 8-bit floats."""

from bnb_core.nn import LinearFP8Global, LinearFP8Mixed

__all__ = ["LinearFP8Global", "LinearFP8Mixed"]
