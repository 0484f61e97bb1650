"""A small classifier of handwritten digits, trained with one optimizer or another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import bnb_core

from .calls import Calls
from .layers import held_bytes

HIDDEN = 256
BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-2
SEED = 0
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Split:
    """Images `[n, 64]` in 0…1 and their digits `[n]`."""

    images: Tensor
    digits: Tensor


@dataclass
class Training:
    """What one optimizer made of the classifier; the losses are means over an epoch."""

    title: str
    losses: list[float] = field(default_factory=list)
    test_loss: float = 0.0
    test_accuracy: float = 0.0
    state_bytes: int = 0
    seconds: float = 0.0
    kernels: Calls = field(default_factory=dict)


def optimizers() -> dict[str, MakeOptimizer]:
    """The optimizers compared, with the same settings."""
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "torch AdamW": torch.optim.AdamW,
        "bnb_core AdamW, 32 bit": bnb_core.optim.AdamW32bit,
        "bnb_core AdamW, 8 bit": bnb_core.optim.AdamW8bit,
    }
    return {title: partial(kind, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY) for title, kind in kinds.items()}


def data() -> tuple[Split, Split]:
    """Scikit-learn's 8x8 digits: 1437 images to train on, 360 to test on."""
    digits = load_digits()
    images = torch.from_numpy(digits.data).float() / 16
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(range(len(labels)), test_size=360, random_state=SEED, stratify=digits.target)
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def classifier(seed: int = SEED) -> nn.Sequential:
    """The same network for a seed. Its first two weights are large enough (4096 elements) for 8-bit state."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))


def train(title: str, make: MakeOptimizer, epochs: int, advance: Callable[[int], None]) -> Training:
    """Trains the classifier from its seed, on the same batches in the same order whatever the optimizer."""
    training, test = data()
    model = classifier()
    optimizer = make(model.parameters())
    order = torch.Generator().manual_seed(SEED)
    result = Training(title)
    start = time.perf_counter()
    for _ in range(epochs):
        result.losses.append(_epoch(model, optimizer, training, order))
        advance(1)
    result.seconds = time.perf_counter() - start
    result.state_bytes = held_bytes(*optimizer.state.values())
    with torch.no_grad():
        logits = model(test.images)
        result.test_loss = nn.functional.cross_entropy(logits, test.digits).item()
        result.test_accuracy = (logits.argmax(1) == test.digits).float().mean().item()
    return result


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, split: Split, order: torch.Generator) -> float:
    total = 0.0
    for rows in torch.randperm(len(split.digits), generator=order).split(BATCH):
        loss = nn.functional.cross_entropy(model(split.images[rows]), split.digits[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    return total / len(split.digits)
