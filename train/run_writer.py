"""Writes a run folder during a training."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
import torch
from torch import Tensor

from edgevae.files import replace_folder

from .binarization import binarize_once
from .data import Images
from .errors import RunError
from .evaluation import Evaluation
from .report import REPORT_FILES
from .run import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    ELBOS,
    EVALUATION_FILE,
    IMAGES,
    LABELS,
    METRICS_FILE,
    NUM_SAMPLES,
    SAMPLES_FILE,
    STEP,
    TEST_ELBOS_FILE,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    WEIGHTS,
    WEIGHTS_FILE,
    Checkpoint,
    EpochMetrics,
    RunConfig,
    read_config,
    read_metrics,
    run_errors,
    write_whole,
)

_LEFTOVERS = ".*.part*"  # of a process that was killed while it wrote
_LOGS = {"tensorboard", "mlflow_run_id"}
_OF_A_RUN = {
    *(CONFIG_FILE, SAMPLES_FILE, CHECKPOINT_FILE, WEIGHTS_FILE, METRICS_FILE, EVALUATION_FILE),
    *(TEST_ELBOS_FILE, *REPORT_FILES, *_LOGS),
}


class RunWriter:
    """Writes a run folder, each file whole or not at all, the checkpoint after the files that belong to it.

    A run that replaces another one does so with its first checkpoint: in one step if the folder holds nothing but the
    old run. If it holds other files, only the old run's are removed, before the new ones are written.

    Args:
        path: The folder; made with the first checkpoint, so that a training that fails before leaves nothing.
        config: Goes into `config.json`.
        samples: Test images to keep, shape `(num_images, *data_shape)`; the first 256 are, binarized as `config` says.
        labels: Their classes, shape `(num_images,)`, for a conditional model.
        train_samples: Training images to keep; 256 of them are, evenly spaced, binarized likewise.
        train_labels: Their classes.
        overwrite: Whether a run that is already there may be replaced.
        resume: Whether to go on with a run that is already there; `checkpoint` is its last one then.

    Attributes:
        checkpoint: Where to go on from; `None` for a new run.
        metrics: One entry for each epoch that is saved.

    Raises:
        RunError: `path` holds a run and neither `overwrite` nor `resume`, or one of another configuration; or it is a
            file.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        samples: Images,
        labels: Tensor | None = None,
        *,
        train_samples: Images | None = None,
        train_labels: Tensor | None = None,
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        self.path = path
        self.checkpoint: Checkpoint | None = None
        self.metrics: list[EpochMetrics] = []
        self._config, self._overwrite = config, overwrite
        self._samples: dict[str, Tensor] = {}
        self._keep((IMAGES, LABELS), samples, labels, slice(NUM_SAMPLES))
        if train_samples is not None:
            count = min(NUM_SAMPLES, len(train_samples))
            spread = torch.arange(count) * len(train_samples) // count  # the first may all be of one class
            self._keep((TRAIN_IMAGES, TRAIN_LABELS), train_samples, train_labels, spread)
        if resume and (path / CHECKPOINT_FILE).exists():
            self.checkpoint = Checkpoint.read(path / CHECKPOINT_FILE)
            self._config = _continued(path, config)
            epochs = int(self.checkpoint.notes["epoch"])
            self.metrics = [line for line in read_metrics(path) if line.complete and line.epoch <= epochs]
        else:
            check_writable(path, overwrite)
        self._begun = False

    def _keep(self, names: tuple[str, str], images: Images, labels: Tensor | None, rows: slice | Tensor) -> None:
        kept = binarize_once(images[rows], self._config.training.binarize)
        self._samples[names[0]] = kept.cpu().clone(memory_format=torch.contiguous_format)
        if labels is not None:
            self._samples[names[1]] = labels[rows].cpu().clone()

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Save a checkpoint within an epoch."""
        with self._folder() as folder:
            checkpoint.write(folder / CHECKPOINT_FILE)

    def save_epoch(self, checkpoint: Checkpoint, metrics: EpochMetrics, *, keep: bool = True) -> None:
        """Save the checkpoint after an epoch, and its metrics.

        Args:
            checkpoint: The state of the training.
            metrics: The epoch's.
            keep: Whether the checkpoint's weights become the run's.
        """
        self.metrics.append(metrics)
        lines = "".join(json.dumps(dataclasses.asdict(line)) + "\n" for line in self.metrics)
        with self._folder() as folder:
            write_whole(folder / METRICS_FILE, lines.encode())  # before the weights, which say whose they are
            if keep:
                vae = checkpoint.named(WEIGHTS)
                weights = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.items()}
                write_whole(folder / WEIGHTS_FILE, safetensors.torch.save(weights, {STEP: str(metrics.step)}))
            checkpoint.write(folder / CHECKPOINT_FILE)

    def save_evaluations(self, evaluations: Mapping[str, Evaluation], test_elbos: Tensor) -> None:
        """Save the final evaluation.

        Args:
            evaluations: By the name of the set: `train`, `validation`, `test`.
            test_elbos: The ELBO of each test image, in nats, shape `(num_test,)`.
        """
        elbos = {ELBOS: test_elbos.float().cpu().contiguous()}
        write_whole(self.path / TEST_ELBOS_FILE, safetensors.torch.save(elbos))
        content: dict[str, Any] = {name: dataclasses.asdict(each) for name, each in evaluations.items()}
        write_whole(self.path / EVALUATION_FILE, json.dumps(content, indent=2).encode() + b"\n")

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """Give the folder to write to: the run's, or for a new run a hidden one that becomes the run's at the end."""
        if self._begun:
            yield self.path
        elif self.checkpoint is None and _is_replaceable(self.path):
            with run_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with replace_folder(self.path.resolve(), replace=self._overwrite) as folder:
                        self._write_head(folder)
                        yield folder
                except RunError as error:  # it names the hidden folder: let `run_errors` name the run's
                    raise error.__cause__ or error from None
        else:
            self._clear()
            self._write_head(self.path)
            yield self.path
        self._begun = True

    def _clear(self) -> None:
        """Make the folder, and remove what is outdated: a replaced run, or the evaluation of a run that goes on."""
        outdated = [EVALUATION_FILE, TEST_ELBOS_FILE, *REPORT_FILES]
        if self.checkpoint is None:
            outdated += [CHECKPOINT_FILE, WEIGHTS_FILE, METRICS_FILE]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in (*(self.path / name for name in outdated), *self.path.glob(_LEFTOVERS)):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"the run's folder {self.path} cannot be written to: {error.strerror or error}") from error

    def _write_head(self, folder: Path) -> None:
        """Write what does not change with the epochs."""
        content = json.dumps(msgspec.to_builtins(self._config), indent=2).encode()
        write_whole(folder / CONFIG_FILE, content + b"\n")
        write_whole(folder / SAMPLES_FILE, safetensors.torch.save(self._samples))


def check_writable(path: Path, overwrite: bool) -> None:
    """Raise `RunError` if a run cannot be written to `path` without losing what is there."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; --out must name a folder")
    if overwrite:
        return
    remedy = "choose another --out, or give --force to replace it"
    if (path / CHECKPOINT_FILE).exists():
        raise RunError(f"{path} already holds a run; go on with it by --resume, {remedy}")
    if (path / WEIGHTS_FILE).exists():
        raise RunError(f"{path} already holds a run, without a checkpoint to go on from; {remedy}")


def _is_replaceable(path: Path) -> bool:
    """Whether the folder can be replaced as a whole: it is not there, or holds nothing but a run."""
    if not path.exists():
        return True
    names = {file.name for file in path.iterdir() if not file.match(_LEFTOVERS)}
    place = path.resolve()
    held = place.is_mount() or Path.cwd().is_relative_to(place) or not os.access(place.parent, os.W_OK | os.X_OK)
    return names <= _OF_A_RUN and not held


def _continued(path: Path, config: RunConfig) -> RunConfig:
    """Return the configuration of a run that goes on. The number of epochs may change, and the command's options.

    Raises:
        RunError: Something else has changed.
    """
    before = read_config(path)
    for part in ("model", "training", "dataset"):
        was, now = (dataclasses.asdict(getattr(each, part)) for each in (before, config))
        for name in was:
            if was[name] == now[name] or (name == "epochs" and was["schedule"] != "cosine"):
                continue
            if name == "digest":
                raise RunError(
                    f"{path} was begun with other rows of {now['name']}: the data changed, or were split in another "
                    "way; give it the same (--data, --split-seed, --scale, ...), or begin another with --out"
                )
            raise RunError(
                f"{path} was begun with {name} {was[name]}, got {now[name]}; a run goes on as it began: give the "
                "same, or begin another with --out"
            )
    return dataclasses.replace(before, training=config.training, command=config.command or before.command)
