"""Writes a run folder as a training goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from train._binarize import binarize_once
from train._checkpoint import Checkpoint, write_whole
from train._errors import RunError
from train._evaluation import Evaluation
from train._images import Images
from train._report import REPORT_FILES
from train._run import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    ELBOS,
    EVALUATION_FILE,
    IMAGES,
    LABELS,
    METRICS_FILE,
    NUM_SAMPLES,
    SAMPLES_FILE,
    SETTINGS_FILE,
    TEST_ELBOS_FILE,
    WEIGHTS_FILE,
    EpochMetrics,
    RunConfig,
    read_config,
    read_metrics,
)
from train._trainer import WEIGHTS


class RunWriter:
    """Writes a run folder; each file whole or not at all, the checkpoint last of what belongs to one moment.

    Args:
        path: The folder; made with the first checkpoint, so that a training that fails before it leaves no trace.
        config: Goes into `config.json`.
        samples: Test images to keep, shape `(num_images, *data_shape)`; the first 256 are, binarized as `config` says.
        labels: Their classes, shape `(num_images,)`, for a conditional model.
        overwrite: Whether a run that is already there may be replaced.
        resume: Whether to go on with a run that is already there; `checkpoint` is its last moment then.
        settings: Goes into `settings.toml`; empty for no such file.

    Attributes:
        checkpoint: Where to go on from; `None` at the beginning.
        metrics: One entry for each epoch up to there, and for those that are saved.

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
        overwrite: bool = False,
        resume: bool = False,
        settings: str = "",
    ) -> None:
        self.path = path
        self.checkpoint: Checkpoint | None = None
        self.metrics: list[EpochMetrics] = []
        self._config, self._settings = config, settings
        kept = {IMAGES: binarize_once(samples[:NUM_SAMPLES], config.training.binarize)}
        kept |= {} if labels is None else {LABELS: labels[:NUM_SAMPLES]}
        self._samples = {name: tensor.cpu().contiguous() for name, tensor in kept.items()}
        if resume and (path / CHECKPOINT_FILE).exists():
            self.checkpoint = Checkpoint.read(path / CHECKPOINT_FILE)
            self._config = _continued(path, config)
            epochs = int(self.checkpoint.notes["epoch"])
            self.metrics = [line for line in read_metrics(path) if line.complete and line.epoch <= epochs]
        else:
            check_writable(path, overwrite)
        self._begun = False

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Save a moment within an epoch."""
        self._begin()
        checkpoint.write(self.path / CHECKPOINT_FILE)

    def save_epoch(self, checkpoint: Checkpoint, metrics: EpochMetrics, *, keep: bool = True) -> None:
        """Save the moment after an epoch, and its metrics.

        Args:
            checkpoint: The moment.
            metrics: The epoch's.
            keep: Whether its weights become those of the run.
        """
        self._begin()
        self.metrics.append(metrics)
        if keep:
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.named(WEIGHTS).items()}
            write_whole(self.path / WEIGHTS_FILE, safetensors.torch.save(weights))
        lines = "".join(json.dumps(dataclasses.asdict(line)) + "\n" for line in self.metrics)
        write_whole(self.path / METRICS_FILE, lines.encode())
        checkpoint.write(self.path / CHECKPOINT_FILE)

    def save_evaluations(self, evaluations: Mapping[str, Evaluation], test_elbos: Tensor) -> None:
        """Save what the run's weights are worth.

        Args:
            evaluations: By the name of the set: `train`, `validation`, `test`.
            test_elbos: The ELBO of each test image, in nats, shape `(num_test,)`.
        """
        content: dict[str, Any] = {name: dataclasses.asdict(each) for name, each in evaluations.items()}
        write_whole(self.path / EVALUATION_FILE, json.dumps(content, indent=2).encode() + b"\n")
        elbos = {ELBOS: test_elbos.float().cpu().contiguous()}
        write_whole(self.path / TEST_ELBOS_FILE, safetensors.torch.save(elbos))

    def _begin(self) -> None:
        """Make the folder, or what of a former run or a former end does not hold any more away."""
        if self._begun:
            return
        self._begun = True
        outdated = [EVALUATION_FILE, TEST_ELBOS_FILE, *REPORT_FILES]
        if self.checkpoint is None:
            outdated += [CHECKPOINT_FILE, WEIGHTS_FILE, METRICS_FILE, SETTINGS_FILE]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in outdated:
                (self.path / file).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"the run's folder {self.path} cannot be written to: {error.strerror or error}") from error
        content = json.dumps(dataclasses.asdict(self._config), indent=2).encode()
        write_whole(self.path / CONFIG_FILE, content + b"\n")
        if self._settings:
            write_whole(self.path / SETTINGS_FILE, self._settings.encode())
        write_whole(self.path / SAMPLES_FILE, safetensors.torch.save(self._samples))


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
        raise RunError(f"{path} already holds a run, of an edgevae that left no checkpoint to go on from; {remedy}")


def _continued(path: Path, config: RunConfig) -> RunConfig:
    """Return the configuration of a run that goes on: as it was, but for the number of epochs.

    Raises:
        RunError: Something else is not as it was.
    """
    before = read_config(path)
    for part in ("model", "training", "dataset"):
        was, now = (dataclasses.asdict(getattr(each, part)) for each in (before, config))
        for name in was:
            free = name == "epochs" and was["schedule"] != "cosine"
            if was[name] != now[name] and not free:
                raise RunError(
                    f"{path} was begun with {name} {was[name]}, got {now[name]}; a run goes on as it began: give the "
                    "same, or begin another with --out"
                )
    return dataclasses.replace(before, training=config.training)
