"""Optimizers with 8-bit or 32-bit state (arXiv:2110.02861)."""

from .adam import Adam, Adam8bit, Adam32bit, AdamW, AdamW8bit, AdamW32bit
from .base import KBitOptimizer

__all__ = ["Adam", "Adam32bit", "Adam8bit", "AdamW", "AdamW32bit", "AdamW8bit", "KBitOptimizer"]
