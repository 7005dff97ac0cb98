"""A run folder: what a training leaves behind, and all that an export needs.

settings.toml           every option of the command that trained it; of `python -m train`
config.json             the model's sizes, the training's options, the data set, the versions
checkpoint.safetensors  the training's last saved moment, from which it goes on
weights.safetensors     the VAE's state_dict: the best epoch's by validation ELBO, or without validation the last one's
samples.safetensors     the first test and training images, to verify, draw and calibrate with; labels a model sees
metrics.jsonl           one line an epoch
evaluation.json         what the weights are worth on each set of images; of a finished training
test_elbos.safetensors  the ELBO of each test image, in nats; likewise
report.html, and the pictures in it
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
from torch import Tensor

from .config import ModelConfig, TrainingConfig
from .data import Dataset, Images, Preprocessing, digest_of
from .errors import RunError
from .evaluation import Evaluation
from .vae import VAE

SCHEMA_VERSION = 1
NUM_SAMPLES = 256

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
SAMPLES_FILE = "samples.safetensors"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.safetensors"
EVALUATION_FILE = "evaluation.json"
TEST_ELBOS_FILE = "test_elbos.safetensors"
SETTINGS_FILE = "settings.toml"

IMAGES, LABELS, TRAIN_IMAGES, TRAIN_LABELS, ELBOS = "test", "labels", "train", "train_labels", "elbos"
"""Names of the tensors in the files."""

STEP = "step"  # beside the weights: that they are of

_PRODUCERS = ("edgevae", "torch", "pyro-ppl")
_NOTHING_DONE = Preprocessing()


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a run remembers of its data.

    Args:
        name: The data set.
        num_train: Number of training images.
        num_test: Number of test images.
        num_validation: Number of validation images, 0 where there were none.
        preprocessing: What was done to the stored values.
        class_names: The classes' names, in the order of their numbers; empty where they have none.
        digest: `digest_of` the rows; empty in a run of a version that did not take it.
    """

    name: str
    num_train: int
    num_test: int
    num_validation: int = 0
    preprocessing: Preprocessing = _NOTHING_DONE
    class_names: tuple[str, ...] = ()
    digest: str = ""

    @classmethod
    def of(cls, dataset: Dataset[Images]) -> DatasetInfo:
        """Return what a run remembers of a data set."""
        return cls(
            name=dataset.name,
            num_train=len(dataset.train),
            num_test=len(dataset.test),
            num_validation=0 if dataset.validation is None else len(dataset.validation),
            preprocessing=dataset.preprocessing,
            class_names=dataset.class_names,
            digest=digest_of(dataset),
        )


@dataclasses.dataclass(frozen=True)
class EpochMetrics:
    """One line of `metrics.jsonl`.

    Args:
        epoch: Counted from 1.
        train_loss_nats: Mean loss over the epoch's steps, nats an image: `-elbo`, its latent part weighted by beta.
        test_elbo_nats: Mean ELBO of the whole test set after the epoch, nats an image; beta does not weigh in it.
        num_particles: Draws of z an image that the ELBOs are estimated from.
        epoch_seconds: Time of the epoch's steps, evaluation not counted; since the last start, where the epoch was
            resumed.
        complete: `False` where the epoch was interrupted.
        step: Steps since the training began.
        learning_rate: That of the epoch's last step.
        beta: The latent's weight in the epoch's loss.
        validation_elbo_nats: Mean ELBO of the validation images; `None` where there are none.
    """

    epoch: int
    train_loss_nats: float
    test_elbo_nats: float
    num_particles: int
    epoch_seconds: float
    complete: bool = True
    step: int = 0
    learning_rate: float | None = None
    beta: float = 1.0
    validation_elbo_nats: float | None = None


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
        evaluations: What the weights are worth, by the name of the set; empty where the training did not end.
        test_elbos: ELBO of each test image, in nats, shape `(num_test,)`; `None` likewise.
        train_samples: Training images, evenly spaced, as `samples`; `None` where an older version did not keep them.
        train_labels: Their classes, as `labels`.
        step: That of the weights; `None` likewise.
    """

    path: Path
    config: RunConfig
    vae: VAE
    samples: Tensor
    labels: Tensor | None
    metrics: tuple[EpochMetrics, ...]
    evaluations: Mapping[str, Evaluation]
    test_elbos: Tensor | None
    train_samples: Tensor | None = None
    train_labels: Tensor | None = None
    step: int | None = None

    @property
    def test_elbo(self) -> tuple[float, int]:
        """Mean ELBO of the test images, nats an image, and the particles that it is estimated from."""
        found = self.evaluations.get("test")
        last = next((line for line in reversed(self.metrics) if line.step == self.step), self.metrics[-1])
        return (last.test_elbo_nats, last.num_particles) if found is None else (found.elbo_nats, found.num_particles)


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
            if (path / CHECKPOINT_FILE).is_file():
                raise RunError(f"the run in {path} has not come to the end of an epoch; go on with it by --resume")
            raise RunError(f"{path} is not a run with a checkpoint: {file} is missing; train one with python -m train")
    config = read_config(path)
    vae = VAE(config.model).eval()
    try:
        vae.load_state_dict(safetensors.torch.load_file(path / WEIGHTS_FILE))
        with safetensors.safe_open(path / WEIGHTS_FILE, framework="pt") as file:
            step = int(notes[STEP]) if STEP in (notes := file.metadata() or {}) else None
        samples = safetensors.torch.load_file(path / SAMPLES_FILE)
        images, labels = samples[IMAGES], samples.get(LABELS)
        train_images, train_labels = samples.get(TRAIN_IMAGES), samples.get(TRAIN_LABELS)
        elbos, evaluation = path / TEST_ELBOS_FILE, path / EVALUATION_FILE
        test_elbos = safetensors.torch.load_file(elbos)[ELBOS] if elbos.is_file() else None
        content = evaluation.read_bytes() if evaluation.is_file() else b"{}"
        evaluations = msgspec.json.decode(content, type=dict[str, Evaluation])
    except (msgspec.MsgspecError, safetensors.SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise RunError(f"the run in {path} is damaged: {error}") from error
    metrics = read_metrics(path)
    if not metrics:
        raise RunError(f"the run in {path} is damaged: {METRICS_FILE} is empty")
    return Run(path, config, vae, images, labels, metrics, evaluations, test_elbos, train_images, train_labels, step)


def read_metrics(path: Path) -> tuple[EpochMetrics, ...]:
    """Return the lines of `metrics.jsonl` of the run in the folder `path`; none where there is no such file.

    Raises:
        RunError: The file is damaged.
    """
    file = path / METRICS_FILE
    try:
        lines = file.read_bytes().splitlines() if file.is_file() else []
        return tuple(msgspec.json.decode(line, type=EpochMetrics) for line in lines)
    except (msgspec.MsgspecError, OSError) as error:
        raise RunError(f"the run in {path} is damaged: {METRICS_FILE}: {error}") from error


def newest_run(folder: Path) -> Path:
    """Return the run in `folder` with the newest checkpoint.

    Raises:
        RunError: There is none.
    """
    checkpoints = sorted(folder.glob(f"[!.]*/{WEIGHTS_FILE}"), key=lambda path: path.stat().st_mtime_ns)
    if not checkpoints:
        raise RunError(f"there is no run in {folder}/; train one with python -m train, or name a run's folder")
    return checkpoints[-1].parent


def read_config(path: Path) -> RunConfig:
    """Return the configuration of the run in the folder `path`.

    Raises:
        RunError: It is missing, damaged, or from a newer version.
    """
    try:
        content: dict[str, Any] = msgspec.json.decode((path / CONFIG_FILE).read_bytes(), type=dict)
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise RunError(
                f"{path / CONFIG_FILE} has schema version {version}, this edgevae reads {SCHEMA_VERSION}; use its own "
                "edgevae"
            )
        return msgspec.convert(content, RunConfig)
    except (msgspec.MsgspecError, OSError) as error:
        raise RunError(f"the run in {path} is damaged: {error}") from error
