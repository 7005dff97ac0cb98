"""How a training shows itself: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from train._fit import Progress as FitProgress
from train._run import EpochMetrics


@contextlib.contextmanager
def show_progress(epochs: int, steps_per_epoch: int) -> Iterator[FitProgress]:
    """Show the training on the standard output, in the way that fits it."""
    console = Console()
    if not console.is_terminal:
        yield _Lines(epochs)
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.2f}"),
        TextColumn("test ELBO {task.fields[elbo]} nats"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        total = epochs * steps_per_epoch
        task = bar.add_task("training", total=total, epoch=1, epochs=epochs, loss=float("nan"), elbo="-")
        yield _Bar(bar, task, epochs)


class _Bar:
    def __init__(self, bar: Progress, task: TaskID, epochs: int) -> None:
        self._bar, self._task, self._epochs = bar, task, epochs

    def on_step(self, loss: Tensor) -> None:
        self._bar.update(self._task, advance=1, loss=loss)  # read when the bar is drawn, a few times a second

    def on_epoch(self, metrics: EpochMetrics) -> None:
        epoch = min(metrics.epoch + 1, self._epochs)
        self._bar.update(self._task, epoch=epoch, elbo=f"{metrics.test_elbo_nats:.2f}")


class _Lines:
    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._start = time.perf_counter()

    def on_step(self, loss: Tensor) -> None:
        pass

    def on_epoch(self, metrics: EpochMetrics) -> None:
        left = (time.perf_counter() - self._start) / metrics.epoch * (self._epochs - metrics.epoch)
        click.echo(
            f"epoch {metrics.epoch}/{self._epochs}  loss {metrics.train_loss_nats:.2f}  "
            f"test ELBO {metrics.test_elbo_nats:.2f} nats an image  "
            f"{metrics.epoch_seconds:.1f} s  left {left / 60:.1f} min"
        )
