"""The whole training: epochs, evaluation, checkpoints, pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from train._binarize import binarize_once
from train._datasets import Dataset
from train._device import forked_rng
from train._elbo import elbo_of_each, evaluating
from train._errors import DivergedError
from train._plots import save_loss_curve, save_reconstructions
from train._run import LOSS_CURVE_FILE, RECONSTRUCTIONS_FILE, EpochMetrics, RunWriter
from train._trainer import Trainer

_FINAL_PARTICLES = 10
"""Particles of the finished run's test ELBO: ten times the evaluation, a third of its noise."""

_NUM_DRAWN = 36


class Progress(Protocol):
    """Is told how the training goes."""

    def on_step(self, loss: Tensor) -> None:
        """A step was made; `loss` is the batch's, in nats an image, a scalar on the device that nobody waited for."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """An epoch ended, and its checkpoint is saved."""


def fit(
    trainer: Trainer,
    dataset: Dataset,
    epochs: int,
    writer: RunWriter,
    progress: Progress,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> EpochMetrics:
    """Train for `epochs`, saving a checkpoint after each, and draw the run's pictures.

    Args:
        trainer: Holds the model; its device must be the data set's.
        dataset: Images to train and to test on, with labels for a conditional model alone. Where the trainer's
            configuration binarizes, it does so with the test images too, once.
        epochs: Passes over the training images, at least 1.
        writer: Where the run goes.
        progress: Told of each step and epoch.
        should_stop: Asked after each step; `True` ends the training there, with a checkpoint of that moment.

    Returns:
        The last epoch's metrics; `complete` is `False` where `should_stop` ended it early.

    Raises:
        DivergedError: The loss or the test ELBO became NaN or infinite; the checkpoint of the epoch before stays.
    """
    test = binarize_once(dataset.test, trainer.config.binarize)
    for epoch in range(1, epochs + 1):
        stopped = False

        def stop_here() -> bool:
            nonlocal stopped
            stopped = should_stop()
            return stopped

        start = time.perf_counter()
        loss = trainer.fit_epoch(dataset.train, progress.on_step, stop_here, labels=dataset.train_labels)
        seconds = time.perf_counter() - start
        num_particles = _FINAL_PARTICLES if stopped or epoch == epochs else 1
        elbos = elbo_of_each(trainer.vae, test, num_particles, dataset.test_labels)
        elbo = float(elbos.mean())
        if not math.isfinite(elbo):
            raise DivergedError(f"the test ELBO became {elbo} in epoch {epoch}; try a lower learning rate")
        metrics = EpochMetrics(epoch, loss, elbo, num_particles, seconds, complete=not stopped)
        writer.save(trainer.vae.state_dict(), metrics)
        progress.on_epoch(metrics)
        if stopped:
            break
    writer.save_test_elbos(elbos)
    save_loss_curve(writer.path / LOSS_CURVE_FILE, writer.metrics)
    with evaluating(trainer.vae), forked_rng(test.device):
        torch.manual_seed(0)
        images = test[:_NUM_DRAWN]
        labels = None if dataset.test_labels is None else dataset.test_labels[:_NUM_DRAWN]
        loc_img = trainer.vae.reconstruct_img(images, labels)
    save_reconstructions(writer.path / RECONSTRUCTIONS_FILE, images.cpu(), loc_img.cpu())
    return metrics
