"""A run folder: everything that a training leaves, and all that an export needs. `RunWriter` writes it.

config.json             the model, the training, the data set, the options of the command, the versions
checkpoint.safetensors  the training's last saved state, from which it goes on
weights.safetensors     the VAE's state_dict: of the epoch with the best validation ELBO, or of the last one
samples.safetensors     the first test images, and training images, with their labels for a conditional model
metrics.jsonl           one line an epoch
evaluation.json         the ELBO and its parts on each set of images; of a completed training
test_elbos.safetensors  the ELBO of each test image, in nats; likewise
report.html             and the pictures in it
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
from torch import Tensor

from edgevae.files import WriteError, write_file

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

IMAGES, LABELS, TRAIN_IMAGES, TRAIN_LABELS, ELBOS = "test", "labels", "train", "train_labels", "elbos"
"""Names of the tensors in the files."""

STEP = "step"
"""Metadata of the weights file: the step that the weights are of."""

WEIGHTS = "vae."
"""Prefix of the model's weights in a checkpoint."""

_NOTES = "notes"

_PRODUCERS = ("edgevae", "torch", "pyro-ppl")
_NO_PREPROCESSING = Preprocessing()


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The data of a run.

    Args:
        name: Of the data set.
        num_train: Number of training images.
        num_test: Number of test images.
        num_validation: Number of validation images, 0 where there were none.
        preprocessing: What was done to the stored values.
        class_names: The classes' names, in the order of their numbers; empty without names.
        digest: `digest_of` the rows, so that a run goes on with the same ones only.
    """

    name: str
    num_train: int
    num_test: int
    num_validation: int = 0
    preprocessing: Preprocessing = _NO_PREPROCESSING
    class_names: tuple[str, ...] = ()
    digest: str = ""

    @classmethod
    def of(cls, dataset: Dataset[Images]) -> DatasetInfo:
        """Describe a data set."""
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
        test_elbo_nats: Mean ELBO of the whole test set after the epoch, nats an image; without beta.
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
    """The content of `config.json`.

    Args:
        schema_version: Of this file.
        model: What was trained.
        training: How.
        dataset: On what.
        producers: Versions of the packages that trained it.
        command: Options of `python -m train` that are none of model and training: data, device, output. `--resume`
            takes them from here. Empty for a training without the command.
    """

    schema_version: int
    model: ModelConfig
    training: TrainingConfig
    dataset: DatasetInfo
    producers: dict[str, str]
    command: dict[str, Any] = dataclasses.field(default_factory=dict)


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
        evaluations: By the name of the set; empty for a training that was not completed.
        test_elbos: ELBO of each test image, in nats, shape `(num_test,)`; `None` likewise.
        train_samples: Training images, evenly spaced, as `samples`; `None` if the writer was given none.
        train_labels: Their classes, as `labels`.
        step: The step that the weights are of.
    """

    path: Path
    config: RunConfig
    vae: VAE
    samples: Tensor
    labels: Tensor | None
    metrics: tuple[EpochMetrics, ...]
    evaluations: Mapping[str, Evaluation]
    test_elbos: Tensor | None
    train_samples: Tensor | None
    train_labels: Tensor | None
    step: int

    @property
    def test_elbo(self) -> tuple[float, int]:
        """Mean ELBO of the test images, nats an image, and the particles that it is estimated from."""
        found = self.evaluations.get("test")
        last = next((line for line in reversed(self.metrics) if line.step == self.step), self.metrics[-1])
        return (last.test_elbo_nats, last.num_particles) if found is None else (found.elbo_nats, found.num_particles)


def run_config(
    model: ModelConfig, training: TrainingConfig, dataset: DatasetInfo, command: Mapping[str, Any] | None = None
) -> RunConfig:
    """Return the configuration of a new run, with the versions of this installation."""
    producers = {name: importlib.metadata.version(name) for name in _PRODUCERS}
    return RunConfig(SCHEMA_VERSION, model, training, dataset, producers, dict(command or {}))


def load_run(path: Path) -> Run:
    """Read the run in the folder `path`.

    Raises:
        RunError: The folder holds no finished epoch, or a file of it is damaged or from a newer version.
    """
    for file in (CONFIG_FILE, WEIGHTS_FILE, SAMPLES_FILE, METRICS_FILE):
        if not (path / file).is_file():
            if (path / CHECKPOINT_FILE).is_file():
                raise RunError(f"the run in {path} has not completed an epoch; go on with it by --resume")
            raise RunError(f"{path} is not a run with a checkpoint: {file} is missing; train one with python -m train")
    config = read_config(path)
    vae = VAE(config.model).eval()
    try:
        vae.load_state_dict(safetensors.torch.load_file(path / WEIGHTS_FILE))
        with safetensors.safe_open(path / WEIGHTS_FILE, framework="pt") as file:
            step = int(file.metadata()[STEP])
        samples = safetensors.torch.load_file(path / SAMPLES_FILE)
        images, labels = samples[IMAGES], samples.get(LABELS)
        train_images, train_labels = samples.get(TRAIN_IMAGES), samples.get(TRAIN_LABELS)
        elbos, evaluation = path / TEST_ELBOS_FILE, path / EVALUATION_FILE
        test_elbos = safetensors.torch.load_file(elbos)[ELBOS] if elbos.is_file() else None
        content = evaluation.read_bytes() if evaluation.is_file() else b"{}"
        evaluations = msgspec.json.decode(content, type=dict[str, Evaluation])
    except (msgspec.MsgspecError, safetensors.SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
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
                f"{path / CONFIG_FILE} has schema version {version}, this edgevae reads {SCHEMA_VERSION}; use the "
                "version that wrote it"
            )
        return msgspec.convert(content, RunConfig)
    except (msgspec.MsgspecError, OSError) as error:
        raise RunError(f"the run in {path} is damaged: {error}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a training needs to go on as if it had never stopped, in one file, so that no part can be older.

    Args:
        tensors: Weights, the optimizer's moments, the states of the random generators, by name.
        notes: Numbers beside them: epoch, step, ...
    """

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, by the rest of their names."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def write(self, path: Path) -> None:
        """Write the checkpoint to `path`, whole or not at all.

        Raises:
            RunError: The disk is full, or the folder cannot be written to; what was there stays.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        write_whole(path, safetensors.torch.save(tensors, {_NOTES: json.dumps(self.notes)}))

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            RunError: It is missing or damaged.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                return cls(tensors, json.loads((file.metadata() or {})[_NOTES]))
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunError(f"the checkpoint {path} cannot be read: {error}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, `path` holds either what it held before or all of `content`.

    Raises:
        RunError: It could not be written; nothing of it is left.
    """
    with run_errors(path):
        write_file(path, content)


@contextlib.contextmanager
def run_errors(path: Path) -> Iterator[None]:
    """Raise `RunError` in the place of an `OSError`: why a file or folder could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        reason = error.reason if isinstance(error, WriteError) else error.strerror or str(error)
        remedy = "Make room, or see to the folder's permissions"
        if not path.parent.is_dir():
            reason, remedy = f"the folder {path.parent} is not there any more", "See to it that it stays"
        raise RunError(
            f"{path} could not be written: {reason}; what it held before is still there. {remedy}, and go on with "
            "--resume"
        ) from error
