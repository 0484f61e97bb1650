"""The version of bnb_core: here and nowhere else."""

__version__ = "0.1.0"
