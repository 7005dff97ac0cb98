"""A run folder: what a training leaves behind, and all that an export needs.

config.json          the model's sizes, the training's options, the data set, the versions
weights.safetensors  the VAE's state_dict
samples.safetensors  the first test images, and their labels where the model sees labels, to verify and draw with
metrics.jsonl        one line an epoch
test_elbos.safetensors  the ELBO of each test image, in nats; of a finished training
loss.png, reconstructions.png
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from train._binarize import binarize_once
from train._config import ModelConfig, TrainingConfig
from train._errors import RunError
from train._vae import VAE

SCHEMA_VERSION = 1
NUM_SAMPLES = 256

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
SAMPLES_FILE = "samples.safetensors"
METRICS_FILE = "metrics.jsonl"
TEST_ELBOS_FILE = "test_elbos.safetensors"
LOSS_CURVE_FILE = "loss.png"
RECONSTRUCTIONS_FILE = "reconstructions.png"
PICTURES = (LOSS_CURVE_FILE, RECONSTRUCTIONS_FILE)

_IMAGES, _LABELS, _ELBOS = "test", "labels", "elbos"
_PRODUCERS = ("edgevae", "torch", "pyro-ppl")


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a run remembers of its data: name, and how many images it trained and tested on."""

    name: str
    num_train: int
    num_test: int


@dataclasses.dataclass(frozen=True)
class EpochMetrics:
    """One line of `metrics.jsonl`.

    Args:
        epoch: Counted from 1.
        train_loss_nats: Mean loss over the epoch's steps, nats an image: `-elbo`, its latent part weighted by beta.
        test_elbo_nats: Mean ELBO of the whole test set after the epoch, nats an image; beta does not weigh in it.
        num_particles: Draws of z an image that the test ELBO is estimated from.
        epoch_seconds: Time of the epoch's steps, evaluation not counted.
        complete: `False` where the epoch was interrupted.
    """

    epoch: int
    train_loss_nats: float
    test_elbo_nats: float
    num_particles: int
    epoch_seconds: float
    complete: bool = True


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The content of `config.json`."""

    schema_version: int
    model: ModelConfig
    training: TrainingConfig
    dataset: DatasetInfo
    producers: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read back: its configuration, the trained model on the CPU, test images and metrics.

    Args:
        path: The folder.
        config: What was trained, how, and on what.
        vae: The model with its trained weights, in evaluation mode.
        samples: The first test images, shape `(num_samples, *data_shape)`, float32 in [0, 1].
        labels: Their classes, int64, shape `(num_samples,)`; `None` where the model is not conditional.
        metrics: One entry an epoch, in order.
        test_elbos: ELBO of each test image, in nats, shape `(num_test,)`; `None` where the training did not come to its
            end.
    """

    path: Path
    config: RunConfig
    vae: VAE
    samples: Tensor
    labels: Tensor | None
    metrics: tuple[EpochMetrics, ...]
    test_elbos: Tensor | None


class RunWriter:
    """Writes a run folder as training goes on; each file whole or not at all.

    Args:
        path: The folder; made with the first checkpoint, so that a training that fails before it leaves no trace.
        config: Goes into `config.json`.
        samples: Test images to keep, shape `(num_images, *data_shape)`; the first 256 are, binarized as `config` says.
        labels: Their classes, shape `(num_images,)`, for a conditional model.
        overwrite: Whether a run that is already there may be replaced.

    Raises:
        RunError: `path` holds a run and `overwrite` is `False`, or it is a file.
    """

    def __init__(
        self, path: Path, config: RunConfig, samples: Tensor, labels: Tensor | None = None, *, overwrite: bool = False
    ) -> None:
        check_writable(path, overwrite)
        self.path = path
        self.metrics: list[EpochMetrics] = []
        self._config = config
        samples = binarize_once(samples, config.training.binarize)
        kept = {_IMAGES: samples} if labels is None else {_IMAGES: samples, _LABELS: labels}
        self._samples = {name: tensor[:NUM_SAMPLES].cpu().contiguous() for name, tensor in kept.items()}

    def save(self, state_dict: Mapping[str, Tensor], metrics: EpochMetrics) -> None:
        """Save the weights after an epoch, and its metrics; the first call makes the folder and removes an old run."""
        if not self.metrics:
            self._begin()
        self.metrics.append(metrics)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
        _write(self.path / WEIGHTS_FILE, safetensors.torch.save(weights))
        lines = "".join(json.dumps(dataclasses.asdict(line)) + "\n" for line in self.metrics)
        _write(self.path / METRICS_FILE, lines.encode())

    def save_test_elbos(self, elbos: Tensor) -> None:
        """Save the ELBO of each test image, in nats, shape `(num_test,)`, after the last epoch."""
        _write(self.path / TEST_ELBOS_FILE, safetensors.torch.save({_ELBOS: elbos.cpu().to(torch.float32)}))

    def _begin(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for file in (WEIGHTS_FILE, METRICS_FILE, TEST_ELBOS_FILE, *PICTURES):
            (self.path / file).unlink(missing_ok=True)
        _write(self.path / CONFIG_FILE, json.dumps(dataclasses.asdict(self._config), indent=2).encode() + b"\n")
        _write(self.path / SAMPLES_FILE, safetensors.torch.save(self._samples))


def check_writable(path: Path, overwrite: bool) -> None:
    """Raise `RunError` if a run cannot be written to `path` without losing what is there."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; --out must name a folder")
    if (path / WEIGHTS_FILE).exists() and not overwrite:
        raise RunError(f"{path} already holds a run; choose another --out, or give --force to replace it")


def run_config(model: ModelConfig, training: TrainingConfig, dataset: DatasetInfo) -> RunConfig:
    """Return the configuration of a new run, with the versions of this installation."""
    producers = {name: importlib.metadata.version(name) for name in _PRODUCERS}
    return RunConfig(SCHEMA_VERSION, model, training, dataset, producers)


def load_run(path: Path) -> Run:
    """Read the run in the folder `path`.

    Raises:
        RunError: The folder holds no finished epoch, or a file of it is damaged or from a newer version.
    """
    for file in (CONFIG_FILE, WEIGHTS_FILE, SAMPLES_FILE, METRICS_FILE):
        if not (path / file).is_file():
            raise RunError(f"{path} is not a run with a checkpoint: {file} is missing; train one with python -m train")
    try:
        config = _decode_config(path / CONFIG_FILE)
        vae = VAE(config.model).eval()
        vae.load_state_dict(safetensors.torch.load_file(path / WEIGHTS_FILE))
        samples = safetensors.torch.load_file(path / SAMPLES_FILE)
        images, labels = samples[_IMAGES], samples.get(_LABELS)
        lines = (path / METRICS_FILE).read_bytes().splitlines()
        elbos = path / TEST_ELBOS_FILE
        test_elbos = safetensors.torch.load_file(elbos)[_ELBOS] if elbos.is_file() else None
        metrics = tuple(msgspec.json.decode(line, type=EpochMetrics) for line in lines)
    except (msgspec.MsgspecError, safetensors.SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise RunError(f"the run in {path} is damaged: {error}") from error
    if not metrics:
        raise RunError(f"the run in {path} is damaged: {METRICS_FILE} is empty")
    return Run(path, config, vae, images, labels, metrics, test_elbos)


def newest_run(folder: Path) -> Path:
    """Return the run in `folder` with the newest checkpoint.

    Raises:
        RunError: There is none.
    """
    checkpoints = sorted(folder.glob(f"*/{WEIGHTS_FILE}"), key=lambda path: path.stat().st_mtime_ns)
    if not checkpoints:
        raise RunError(f"there is no run in {folder}/; train one with python -m train, or name a run's folder")
    return checkpoints[-1].parent


def _decode_config(path: Path) -> RunConfig:
    content: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RunError(f"{path} has schema version {version}, this edgevae reads {SCHEMA_VERSION}; use its own edgevae")
    return msgspec.convert(content, RunConfig)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
