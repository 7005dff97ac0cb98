"""A training in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .binarization import binarize_once
from .data import Dataset, Images
from .errors import InstallError
from .observer import Observer
from .report import generation as _generation
from .report.tiles import Shades, Tiles, is_picture
from .run import EpochMetrics, read_config
from .vae import VAE

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
"""Where in a run's folder the log lies."""

_EVENTS = "events.out.tfevents.*"
_COLUMNS = 12
_NUM_RECONSTRUCTED = 24
_NUM_ENCODED = 1000


class TensorBoardLog(Observer):
    """Writes a log for `tensorboard --logdir <run>` into the run's folder, with the epoch as its step.

    After each epoch: losses, ELBOs, learning rate and beta; of images reconstructions and samples; histograms of
    `z_loc` and `z_scale` over up to 1,000 test images. A training that goes on continues the curves: what an earlier
    start logged of epochs that are made again is purged.

    Raises:
        InstallError: The package tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InstallError("a log for TensorBoard needs its package; pip install tensorboard") from error
        self._new_writer = SummaryWriter
        self._writer: SummaryWriter | None = None

    def on_begin(self, folder: Path, vae: VAE, dataset: Dataset[Images], metrics: Sequence[EpochMetrics]) -> None:
        """Remember what is trained; the log is begun with the first epoch, as the run's folder is."""
        self._folder, self._vae, self._dataset = folder, vae, dataset
        self._before = tuple(metrics)
        self._writer = None

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Log an epoch."""
        writer = self._writer = self._writer or self._begun()
        _log_numbers(writer, metrics)
        x, y = _generation.some_of(self._vae, self._dataset.test, self._dataset.test_labels, _NUM_ENCODED)
        x = binarize_once(x, read_config(self._folder).training.binarize)
        for name, values in zip(("z_loc", "z_scale"), _generation.encoded(self._vae, x, y), strict=True):
            writer.add_histogram(f"latent/{name}", values, metrics.epoch)
        if is_picture(self._vae.config.data_shape):
            self._log_pictures(writer, x, y, metrics.epoch)
        writer.flush()

    def on_end(self) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()

    def _begun(self) -> SummaryWriter:
        """Open the log: a new one, or the one that an earlier start left."""
        path = self._folder / FOLDER
        if not self._before:
            for file in path.glob(_EVENTS):
                file.unlink()
        unknown = () if any(path.glob(_EVENTS)) else self._before
        writer = self._new_writer(str(path), purge_step=self._before[-1].epoch + 1 if self._before else None)
        for metrics in unknown:
            _log_numbers(writer, metrics)
        return writer

    def _log_pictures(self, writer: SummaryWriter, x: Tensor, y: Tensor | None, epoch: int) -> None:
        shape, shades = self._vae.config.data_shape, Shades(x)
        first, first_y = _generation.some_of(self._vae, x, y, _NUM_RECONSTRUCTED)
        loc_img = _generation.reconstructed(self._vae, first, first_y)
        columns = min(_COLUMNS, len(first))
        whole = len(first) // columns * columns
        rows = [values[:whole].reshape(-1, columns, *shape) for values in (first.cpu(), loc_img)]
        pairs = Tiles(shades(torch.stack(rows, dim=1).flatten(0, 1)), group=2)
        samples = Tiles(shades(_generation.sampled(self._vae, _COLUMNS).loc_img.unflatten(-1, shape)))
        writer.add_image("images/reconstructions", pairs.pixels, epoch, dataformats="HWC")
        writer.add_image("images/samples", samples.pixels, epoch, dataformats="HWC")


def _log_numbers(writer: SummaryWriter, metrics: EpochMetrics) -> None:
    numbers = {
        "loss/train": metrics.train_loss_nats,
        "elbo/test": metrics.test_elbo_nats,
        "elbo/validation": metrics.validation_elbo_nats,
        "steering/learning_rate": metrics.learning_rate,
        "steering/beta": metrics.beta,
        "time/epoch_seconds": metrics.epoch_seconds,
    }
    for name, value in numbers.items():
        if value is not None:
            writer.add_scalar(name, value, metrics.epoch)
