"""How a training shows itself: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from .data import Dataset, Images
from .observer import Observer
from .run import EpochMetrics
from .vae import VAE

_BOUND_SECONDS = 10.0


class Shown(Observer):
    """Shows a training on the standard output, in the way that fits it; a context manager.

    Args:
        epochs: That it will have at its end.
        batch_size: Images a step.
    """

    def __init__(self, epochs: int, batch_size: int) -> None:
        self._epochs, self._batch_size = epochs, batch_size
        self._bar: Progress | None = None
        self._images = self._before = 0
        self._start = self._said = 0.0
        self._bound_start: float | None = None
        console = Console()
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(),
                TextColumn("loss {task.fields[loss]:.2f}"),
                TextColumn("{task.fields[elbo]} nats"),
                TextColumn("{task.fields[rate]:,.0f} images/s"),
                TimeRemainingColumn(),
                console=console,
            )

    def __enter__(self) -> Shown:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_begin(
        self,
        folder: Path,  # noqa: ARG002 - all observers are told the same
        vae: VAE,  # noqa: ARG002 - likewise
        dataset: Dataset[Images],
        metrics: Sequence[EpochMetrics],
    ) -> None:
        """Begin at the first epoch that is not made yet."""
        self._images, self._before = len(dataset.train), len(metrics)
        self._one, self._several = ("an image", "images") if len(dataset.data_shape) == 3 else ("a row", "rows")
        self._start = time.perf_counter()
        if self._bar is not None:
            steps = math.ceil(self._images / self._batch_size)
            self._task = self._bar.add_task(
                "training",
                total=self._epochs * steps,
                completed=self._before * steps,
                epoch=self._before + 1,
                epochs=self._epochs,
                loss=float("nan"),
                elbo="test ELBO -",
                rate=0.0,
            )

    def on_step(self, loss: Tensor) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, loss=loss)  # read when the bar is drawn, a few times a second

    def on_bound(self, done: int, total: int) -> None:
        """Say every ten seconds how far it is."""
        now = time.perf_counter()
        if self._bound_start is None:
            self._bound_start = self._said = now
            self._bounded = done
        elif now - self._said >= _BOUND_SECONDS:
            self._said = now
            left = (now - self._bound_start) / (done - self._bounded) * (total - done)
            line = f"importance-weighted bound of {done:,} of {total:,} {self._several}  left {left / 60:.1f} min"
            click.echo(line) if self._bar is None else self._bar.console.print(line)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Say what the epoch brought."""
        rate = self._images / max(metrics.epoch_seconds, 1e-9)
        validation = metrics.validation_elbo_nats
        elbo = f"test ELBO {metrics.test_elbo_nats:.2f}"
        elbo = elbo if validation is None else f"validation ELBO {validation:.2f}  {elbo}"
        if self._bar is not None:
            epoch = min(metrics.epoch + 1, self._epochs)
            self._bar.update(self._task, epoch=epoch, elbo=elbo, rate=rate)
            return
        left = (time.perf_counter() - self._start) / (metrics.epoch - self._before) * (self._epochs - metrics.epoch)
        click.echo(
            f"epoch {metrics.epoch}/{self._epochs}  loss {metrics.train_loss_nats:.2f}  {elbo} nats {self._one}  "
            f"{rate:,.0f} {self._several}/s  left {left / 60:.1f} min"
        )
