"""How fast a training learns, and when it has learnt enough: functions of what was, so that a resumed run agrees."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .config import TrainingConfig


def learning_rate_at(config: TrainingConfig, progress: float, halvings: int = 0) -> float:
    """Return the learning rate of a step.

    Args:
        config: The rate itself, its schedule and its warm-up.
        progress: Epochs gone by at the end of the step, the part of its own included; above 0.
        halvings: How often a plateau has halved the rate.
    """
    rate = config.learning_rate * 0.5**halvings
    if progress < config.lr_warmup:
        return rate * progress / config.lr_warmup
    if config.schedule == "cosine":
        after = (progress - config.lr_warmup) / max(config.epochs - config.lr_warmup, 1)
        return rate * (1 + math.cos(math.pi * min(after, 1.0))) / 2
    return rate


def halvings_after(config: TrainingConfig, validation_elbos: Sequence[float]) -> int:
    """Return how often the learning rate is halved after epochs with these validation ELBOs.

    Args:
        config: With the schedule `plateau`; any other halves nothing.
        validation_elbos: One an epoch, nats.
    """
    if config.schedule != "plateau":
        return 0
    best, waited, halvings = -math.inf, 0, 0
    for elbo in validation_elbos:
        best, waited = (elbo, 0) if elbo > best else (best, waited + 1)
        if waited == config.plateau_epochs:
            halvings, waited = halvings + 1, 0
    return halvings


def best_epoch(validation_elbos: Sequence[float]) -> int:
    """Return the epoch, counted from 1, with the highest validation ELBO, the first of equals; 0 for no epochs."""
    if not validation_elbos:
        return 0
    return 1 + max(range(len(validation_elbos)), key=lambda index: (validation_elbos[index], -index))


def is_enough(config: TrainingConfig, validation_elbos: Sequence[float]) -> bool:
    """Return whether the training ends, because `patience` epochs have brought nothing better."""
    return config.patience > 0 and len(validation_elbos) - best_epoch(validation_elbos) >= config.patience
