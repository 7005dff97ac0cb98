"""The learning rate and beta of a step, and when a training ends.

All are functions of the epochs so far, so that a resumed training goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .config import TrainingConfig


def learning_rate_at(config: TrainingConfig, progress: float, halvings: int = 0) -> float:
    """Return the learning rate of a step.

    Args:
        config: The rate itself, its schedule and its warm-up.
        progress: Epochs completed at the end of the step, fractions included; above 0.
        halvings: How often a plateau has halved the rate.
    """
    rate = config.learning_rate * 0.5**halvings
    if progress < config.lr_warmup:
        return rate * progress / config.lr_warmup
    if config.schedule == "cosine":
        after = (progress - config.lr_warmup) / max(config.epochs - config.lr_warmup, 1)
        return rate * (1 + math.cos(math.pi * min(after, 1.0))) / 2
    return rate


def beta_at(epoch: int, beta: float, warmup: int) -> float:
    """Return the latent's weight in an epoch: a linear warm-up to `beta` over the first `warmup` epochs, never 0.

    Args:
        epoch: Counted from 1.
        beta: The weight after the warm-up.
        warmup: Number of epochs of the warm-up; 0 for none.
    """
    return beta * min(1.0, epoch / warmup) if warmup else beta


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


def is_finished(config: TrainingConfig, validation_elbos: Sequence[float]) -> bool:
    """Return whether the last `patience` epochs brought no better validation ELBO."""
    return config.patience > 0 and len(validation_elbos) - best_epoch(validation_elbos) >= config.patience
