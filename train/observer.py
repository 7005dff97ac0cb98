"""Who is told how a training goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .data import Dataset, Images
from .run import EpochMetrics
from .vae import VAE


class Observer:
    """Is told how a training goes; each method does nothing until it is overridden."""

    def on_begin(self, folder: Path, vae: VAE, dataset: Dataset[Images], metrics: Sequence[EpochMetrics]) -> None:
        """The training begins, or goes on.

        Args:
            folder: The run's.
            vae: The model, which changes as the training goes on.
            dataset: Its images, on the model's device where that has room for them.
            metrics: Those of the epochs before.
        """

    def on_step(self, loss: Tensor) -> None:
        """A step was made; `loss` is the batch's, in nats an image, a scalar on the device that nobody waited for."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """An epoch ended, and its checkpoint is saved."""

    def on_bound(self, done: int, total: int) -> None:
        """The importance-weighted bound, which takes long, is known of `done` of the `total` test images."""

    def on_end(self) -> None:
        """The training ended, or was interrupted; what the run's folder is to hold is there."""
