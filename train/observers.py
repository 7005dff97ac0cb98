"""Observers of a training: the progress display, TensorBoard, MLflow, and the base of your own."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
import msgspec
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from .data import Dataset, Images, binarize_once
from .errors import InstallError
from .evaluation import NotFinite
from .processes import SINGLE, Processes
from .report import figures, generation
from .run import (
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    REPORT_FILES,
    WEIGHTS_FILE,
    EpochMetrics,
    read_config,
    write_whole,
)
from .trainable import Trainable
from .vae import VAE

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD_FOLDER = "tensorboard"
"""Folder of TensorBoard's log, in the run's folder."""

MLFLOW_RUN_ID_FILE = "mlflow_run_id"
"""File in the run's folder that holds the id of its MLflow run, so that a resumed training continues that one."""

_BOUND_INTERVAL_S = 10.0
_EVENT_FILES = "events.out.tfevents.*"
_RECONSTRUCTED = 24
_ENCODED = 1000
_ARTIFACTS = (CONFIG_FILE, WEIGHTS_FILE, METRICS_FILE, EVALUATION_FILE, *REPORT_FILES)


class Observer:
    """Is called as a training proceeds. Its methods do nothing: override what you need."""

    def on_begin(self, folder: Path, vae: Trainable, dataset: Dataset[Images], metrics: Sequence[EpochMetrics]) -> None:
        """Training begins, or resumes.

        Args:
            folder: The run's folder; it may not exist before the first epoch ends.
            vae: The model; it changes while it is trained.
            dataset: The data, on the model's device if they fit there.
            metrics: Those of the epochs so far.
        """

    def on_step(self, loss: Tensor) -> None:
        """A step is done. `loss` is its mean in nats an observation, a scalar on the device; reading it waits."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """An epoch has ended, and its checkpoint is saved."""

    def on_bound(self, done: int, total: int) -> None:
        """The importance-weighted bound, which takes long, is computed for `done` of `total` test observations."""

    def on_end(self) -> None:
        """Training has ended or was interrupted; the run's folder is complete."""


class ProgressDisplay(Observer):
    """Shows a training on standard output: a bar on a terminal, a line an epoch elsewhere. A context manager.

    Args:
        epochs: Number of epochs of the whole training.
        batch_size: Observations a step.
        processes: The processes that train together.
    """

    def __init__(self, epochs: int, batch_size: int, processes: Processes = SINGLE) -> None:
        self._epochs, self._batch_size, self._processes = epochs, batch_size, processes
        self._bar: Progress | None = None
        self._num_train = self._epochs_before = 0
        self._start = self._last_shown = 0.0
        self._bound_start: float | None = None
        self._not_finite: Mapping[str, NotFinite] = {}
        console = Console()
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(),
                TextColumn("loss {task.fields[loss]:.2f}"),
                TextColumn("{task.fields[elbo]} nats"),
                TextColumn("{task.fields[rate]:,.0f} {task.fields[unit]}/s"),
                TimeRemainingColumn(),
                console=console,
            )

    def __enter__(self) -> ProgressDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_begin(self, folder: Path, vae: Trainable, dataset: Dataset[Images], metrics: Sequence[EpochMetrics]) -> None:  # noqa: ARG002
        """Show the epochs so far."""
        self._num_train, self._epochs_before = len(dataset.train), len(metrics)
        self._one, self._several = ("an image", "images") if len(dataset.data_shape) == 3 else ("a row", "rows")
        self._start = time.perf_counter()
        if self._bar is not None:
            steps = len(self._processes.batches(self._num_train, self._batch_size))
            self._task = self._bar.add_task(
                "training",
                total=self._epochs * steps,
                completed=self._epochs_before * steps,
                epoch=self._epochs_before + 1,
                epochs=self._epochs,
                loss=float("nan"),
                elbo="test ELBO -",
                rate=0.0,
                unit=self._several,
            )

    def on_step(self, loss: Tensor) -> None:
        """Advance the bar."""
        if self._bar is not None:
            # Reading the loss waits for the device: the bar does so only when it is drawn, a few times a second.
            self._bar.update(self._task, advance=1, loss=loss)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Show the epoch's ELBO, the speed and the time left."""
        rate = self._num_train / max(metrics.epoch_seconds, 1e-9)
        elbo = f"test ELBO {_elbo_text(metrics.test_elbo_nats, metrics.test_elbo_median_nats)}"
        if metrics.validation_elbo_nats is not None:
            validation = _elbo_text(metrics.validation_elbo_nats, metrics.validation_elbo_median_nats)
            elbo = f"validation ELBO {validation}  {elbo}"
        for name, not_finite in metrics.not_finite.items():
            if self._not_finite.get(name) != not_finite:
                self._say(f"epoch {metrics.epoch}: {not_finite.sentence(name)}")
        self._not_finite = metrics.not_finite
        if self._bar is not None:
            epoch = min(metrics.epoch + 1, self._epochs)
            self._bar.update(self._task, epoch=epoch, elbo=elbo, rate=rate)
            return
        seconds_an_epoch = (time.perf_counter() - self._start) / (metrics.epoch - self._epochs_before)
        left_s = seconds_an_epoch * (self._epochs - metrics.epoch)
        click.echo(
            f"epoch {metrics.epoch}/{self._epochs}  loss {metrics.train_loss_nats:.2f}  {elbo} nats {self._one}  "
            f"{rate:,.0f} {self._several}/s  left {left_s / 60:.1f} min"
        )

    def on_bound(self, done: int, total: int) -> None:
        """Show the progress of the bound, every ten seconds."""
        now = time.perf_counter()
        if self._bound_start is None:
            self._bound_start = self._last_shown = now
            self._done_at_start = done
        elif now - self._last_shown >= _BOUND_INTERVAL_S:
            self._last_shown = now
            left_s = (now - self._bound_start) / (done - self._done_at_start) * (total - done)
            self._say(f"importance-weighted bound of {done:,} of {total:,} {self._several}  left {left_s / 60:.1f} min")

    def _say(self, line: str) -> None:
        click.echo(line) if self._bar is None else self._bar.console.print(line, highlight=False)


def _elbo_text(mean: float, median: float | None) -> str:
    return f"{mean:.2f}" if median is None else f"{mean:.2f} (median {median:.2f})"


class TensorBoardLog(Observer):
    """Writes a log for `tensorboard --logdir <run>` into the run's folder; its steps are epochs.

    After each epoch: losses, ELBOs, learning rate and beta; histograms of `z_loc` and `z_scale` over up to 1,000 test
    observations; reconstructions and samples of data that are images. A resumed training continues the curves; epochs
    that are repeated replace the old ones.

    Raises:
        InstallError: The package tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InstallError("the TensorBoard log needs a package; pip install tensorboard") from error
        self._new_writer = SummaryWriter
        self._writer: SummaryWriter | None = None

    def on_begin(self, folder: Path, vae: Trainable, dataset: Dataset[Images], metrics: Sequence[EpochMetrics]) -> None:
        """Remember the arguments. The log, like the run's folder, is created at the end of the first epoch."""
        self._folder, self._vae, self._dataset = folder, vae, dataset
        self._metrics_before = tuple(metrics)
        self._writer = None

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Log an epoch."""
        writer = self._writer = self._writer or self._open()
        _log_numbers(writer, metrics)
        x, y = generation.some_of(self._vae, self._dataset.test, self._dataset.test_labels, _ENCODED)
        x = binarize_once(x, read_config(self._folder).training.binarize)
        if self._vae.num_units:
            z_loc, z_scale = generation.encode(self._vae, x, y)
            # Not those of outliers, which neither histogram nor picture shows.
            finite = torch.isfinite(z_loc + z_scale).all(1)
            x, y = x[finite.to(x.device)], None if y is None else y[finite.to(y.device)]
            for name, values in (("z_loc", z_loc), ("z_scale", z_scale)):
                writer.add_histogram(f"latent/{name}", values[finite], metrics.epoch)
        if figures.is_picture(self._vae.config.data_shape):
            for name, grid in self._grids(x, y).items():
                writer.add_image(f"images/{name}", grid.pixels, metrics.epoch, dataformats="HWC")
        writer.flush()

    def on_end(self) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> SummaryWriter:
        """Open a new log, or that of the resumed training."""
        path = self._folder / TENSORBOARD_FOLDER
        if not self._metrics_before:
            for file in path.glob(_EVENT_FILES):
                file.unlink()
        not_logged = () if any(path.glob(_EVENT_FILES)) else self._metrics_before
        purge_step = self._metrics_before[-1].epoch + 1 if self._metrics_before else None
        writer = self._new_writer(str(path), purge_step=purge_step)
        for metrics in not_logged:
            _log_numbers(writer, metrics)
        return writer

    def _grids(self, x: Tensor, y: Tensor | None) -> dict[str, figures.Grid]:
        shape, levels = self._vae.config.data_shape, figures.GreyLevels(x)
        some, some_y = generation.some_of(self._vae, x, y, _RECONSTRUCTED)
        grids: dict[str, figures.Grid] = {}
        if self._vae.has_means:
            loc_img = generation.reconstruct(self._vae, some, some_y)
            grids["reconstructions"] = figures.reconstruction_grid(some, loc_img, levels)
        if isinstance(self._vae, VAE):
            samples = generation.sample_prior(self._vae, figures.GRID_COLUMNS).loc_img
            grids["samples"] = figures.Grid(levels(samples.unflatten(-1, shape)))
        return grids


def _log_numbers(writer: SummaryWriter, metrics: EpochMetrics) -> None:
    numbers = {
        "loss/train": metrics.train_loss_nats,
        "elbo/test": metrics.test_elbo_nats,
        "elbo/test_median": metrics.test_elbo_median_nats,
        "elbo/validation": metrics.validation_elbo_nats,
        "elbo/validation_median": metrics.validation_elbo_median_nats,
        "schedule/learning_rate": metrics.learning_rate,
        "schedule/beta": metrics.beta,
        "time/epoch_seconds": metrics.epoch_seconds,
    }
    for name, value in numbers.items():
        if value is not None:
            writer.add_scalar(name, value, metrics.epoch)


class MlflowLog(Observer):
    """Logs a training to MLflow, as `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` say.

    The configuration is logged as parameters, each epoch's numbers as metrics with the epoch as their step, and at the
    end weights, evaluation and report as artifacts. If the process has an active MLflow run, that one is used, and left
    open.

    Raises:
        InstallError: The package mlflow is not installed.
    """

    def __init__(self) -> None:
        try:
            self._mlflow: Any = importlib.import_module("mlflow")
        except ImportError as error:
            raise InstallError("the MLflow log needs a package; pip install mlflow") from error
        self._started = False
        self._owns_run = False

    def on_begin(self, folder: Path, vae: Trainable, dataset: Dataset[Images], metrics: Sequence[EpochMetrics]) -> None:  # noqa: ARG002
        """Remember the run; MLflow's, like the run's folder, is created at the end of the first epoch."""
        self._folder = folder
        self._resumed = bool(metrics)
        self._started = False

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Log an epoch's numbers."""
        if not self._started:
            self._start()
        numbers = dataclasses.asdict(metrics)
        epoch = numbers.pop("epoch")
        numbers |= {f"{name}_not_finite": each["count"] for name, each in numbers.pop("not_finite").items()}
        found = {name: float(value) for name, value in numbers.items() if value is not None}
        self._mlflow.log_metrics(found, step=epoch)

    def on_end(self) -> None:
        """Log the files, and end MLflow's run if it was started here."""
        if not self._started:
            return
        for file in _ARTIFACTS:
            if (self._folder / file).is_file():
                self._mlflow.log_artifact(str(self._folder / file))
        if self._owns_run:
            self._mlflow.end_run()

    def _start(self) -> None:
        """Start an MLflow run, or continue that of the resumed training."""
        self._started, self._owns_run = True, self._mlflow.active_run() is None
        id_file = self._folder / MLFLOW_RUN_ID_FILE
        run_id = id_file.read_text().strip() if self._resumed and id_file.is_file() else None
        if self._owns_run:
            start_run = self._mlflow.start_run
            run = start_run(run_id=run_id) if run_id else start_run(run_name=self._folder.name)
            write_whole(id_file, run.info.run_id.encode())
        if not (self._owns_run and run_id):  # MLflow refuses to change a parameter
            config = msgspec.to_builtins(read_config(self._folder))
            self._mlflow.log_params(dict(_flattened(config)))


def _flattened(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested options with names such as `model.z_dim`."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
