"""A run folder: everything that a training writes, and an export needs. `RunWriter` writes it.

config.json             the model, the training, the data set, the options of the command, the versions
checkpoint.safetensors  the last saved state, from which the training is resumed
weights.safetensors     the model's state_dict: of the epoch with the best validation ELBO, or of the last one
samples.safetensors     the first test images, and training images, with their labels for a conditional model
metrics.jsonl           one line an epoch
evaluation.json         the ELBO and its parts on each set of images; only of a completed training
test_elbos.safetensors  the ELBO of each test image, and the images with the lowest; only of a completed training
report.html             and its figures, *.png
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from edgevae.files import WriteError, replace_folder, write_file

from .config import AnyModelConfig, ModelConfig, ProgramConfig, TrainingConfig
from .data import Dataset, Images, Preprocessing, binarize_once, digest_of, evenly_spaced
from .errors import RunError
from .evaluation import Evaluation, NotFinite
from .models import make_model
from .trainable import Trainable
from .vae import VAE

SCHEMA_VERSION = 1
NUM_SAMPLES = 256
"""How many observations are kept, to verify and to calibrate an export with."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
SAMPLES_FILE = "samples.safetensors"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.safetensors"
EVALUATION_FILE = "evaluation.json"
TEST_ELBOS_FILE = "test_elbos.safetensors"
REPORT_FILES = (
    *("loss.png", "schedule.png", "reconstructions.png", "samples.png", "traversals.png", "latent_map.png", "kl.png"),
    "report.html",
)

WEIGHTS = "vae."
"""Prefix of the model's weights in a checkpoint."""

# Names of tensors and of metadata in the files.
_IMAGES, _LABELS, _TRAIN_IMAGES, _TRAIN_LABELS = "test", "labels", "train", "train_labels"
_ELBOS, _OUTLIERS, _OUTLIER_LABELS = "elbos", "outliers", "outlier_labels"
_STEP = "step"  # at which the weights were saved
_NOTES = "notes"

_PRODUCERS = ("edgevae", "torch", "pyro-ppl")
_NO_PREPROCESSING = Preprocessing()

_LEFTOVERS = ".*.part*"  # of a process that was killed while it wrote
_LOGS = {"tensorboard", "mlflow_run_id"}
_RUN_FILES = {
    *(CONFIG_FILE, SAMPLES_FILE, CHECKPOINT_FILE, WEIGHTS_FILE, METRICS_FILE, EVALUATION_FILE),
    *(TEST_ELBOS_FILE, *REPORT_FILES, *_LOGS),
}


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The data of a run.

    Args:
        name: Name of the data set.
        num_train: Number of training images.
        num_test: Number of test images.
        num_validation: Number of validation images, 0 for none.
        preprocessing: What was done to the stored values.
        class_names: The classes' names, in the order of their numbers; empty without names.
        digest: `digest_of` the rows, so that a run is resumed only with the same ones.
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
        test_elbo_nats: Mean ELBO of the whole test set after the epoch, nats an image; without beta. As all means, of
            those images whose ELBO is finite.
        num_particles: Draws of z an image that the ELBOs are estimated from.
        epoch_seconds: Time of the epoch's steps, without evaluation; of a resumed epoch, since it was resumed.
        complete: `False` if the epoch was interrupted.
        step: Steps since the training began.
        learning_rate: Learning rate of the epoch's last step.
        beta: Weight of the KL in the epoch's loss.
        validation_elbo_nats: Mean ELBO of the validation images; `None` without any.
        test_elbo_median_nats: Median ELBO of the test images.
        validation_elbo_median_nats: That of the validation images.
        validation_elbo_robust_nats: The mean by which epochs are compared, which outliers hardly change, see
            `ElboSummary`.
        not_finite: The images whose ELBO is not finite, by the name of the set, `test` or `validation`; empty if there
            are none.
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
    test_elbo_median_nats: float | None = None
    validation_elbo_median_nats: float | None = None
    validation_elbo_robust_nats: float | None = None
    not_finite: dict[str, NotFinite] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The content of `config.json`.

    Args:
        schema_version: Version of this file's schema.
        model: What was trained.
        training: How it was trained.
        dataset: On what it was trained.
        producers: Versions of the packages that trained it.
        command: The other options of `python -m train`: data, device, output. `--resume` takes them from here. Empty
            for a training from Python.
    """

    schema_version: int
    model: AnyModelConfig
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
        model: The model with its trained weights, in evaluation mode.
        samples: The first test images, shape `(num_samples, *data_shape)`, float32 in [0, 1].
        labels: Their classes, int64, shape `(num_samples,)`; `None` if the model is not conditional.
        metrics: One entry an epoch, in order.
        evaluations: By the name of the set; empty for a training that was not completed.
        test_elbos: ELBO of each test image, in nats, shape `(num_test,)`; `None` for a training that was not completed.
        train_samples: Training images, evenly spaced, as `samples`; `None` if the writer was given none.
        train_labels: Their classes, as `labels`.
        step: The step at which the weights were saved.
        outliers: The test images with the lowest ELBO, the lowest first, as `samples`; `None` for a training that was
            not completed.
        outlier_labels: Their classes, as `labels`.
    """

    path: Path
    config: RunConfig
    model: Trainable
    samples: Tensor
    labels: Tensor | None
    metrics: tuple[EpochMetrics, ...]
    evaluations: Mapping[str, Evaluation]
    test_elbos: Tensor | None
    train_samples: Tensor | None
    train_labels: Tensor | None
    step: int
    outliers: Tensor | None
    outlier_labels: Tensor | None

    @property
    def vae(self) -> VAE:
        """The model, where it is a VAE.

        Raises:
            RunError: It is a Pyro program.
        """
        if not isinstance(self.model, VAE):
            raise RunError(f"{self.path} holds {self.model.summary}, no VAE of edgevae; take model in place of vae")
        return self.model

    @property
    def test_elbo(self) -> tuple[float, int]:
        """Mean ELBO of the test images, nats an image, and its number of particles."""
        found = self.evaluations.get("test")
        last = next((line for line in reversed(self.metrics) if line.step == self.step), self.metrics[-1])
        return (last.test_elbo_nats, last.num_particles) if found is None else (found.elbo_nats, found.num_particles)


def run_config(
    model: AnyModelConfig, training: TrainingConfig, dataset: DatasetInfo, command: Mapping[str, Any] | None = None
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
    try:
        samples = safetensors.torch.load_file(path / SAMPLES_FILE)
        images, labels = samples[_IMAGES], samples.get(_LABELS)
    except (safetensors.SafetensorError, KeyError) as error:
        raise RunError(f"the run in {path} is damaged: {error}") from error
    model = make_model(config.model, (images, labels)).eval()
    try:
        model.load_state_dict(safetensors.torch.load_file(path / WEIGHTS_FILE))
        with safetensors.safe_open(path / WEIGHTS_FILE, framework="pt") as file:
            step = int(file.metadata()[_STEP])
        train_images, train_labels = samples.get(_TRAIN_IMAGES), samples.get(_TRAIN_LABELS)
        elbos, evaluation = path / TEST_ELBOS_FILE, path / EVALUATION_FILE
        of_test = safetensors.torch.load_file(elbos) if elbos.is_file() else {}
        content = evaluation.read_bytes() if evaluation.is_file() else b"{}"
        evaluations = msgspec.json.decode(content, type=dict[str, Evaluation])
    except (msgspec.MsgspecError, safetensors.SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(f"the run in {path} is damaged: {error}") from error
    metrics = read_metrics(path)
    if not metrics:
        raise RunError(f"the run in {path} is damaged: {METRICS_FILE} is empty")
    return Run(
        path=path,
        config=config,
        model=model,
        samples=images,
        labels=labels,
        metrics=metrics,
        evaluations=evaluations,
        test_elbos=of_test.get(_ELBOS),
        train_samples=train_images,
        train_labels=train_labels,
        step=step,
        outliers=of_test.get(_OUTLIERS),
        outlier_labels=of_test.get(_OUTLIER_LABELS),
    )


def read_metrics(path: Path) -> tuple[EpochMetrics, ...]:
    """Return the lines of `metrics.jsonl` of the run in the folder `path`; none without such a file.

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
        return config_of(content)
    except (msgspec.MsgspecError, OSError) as error:
        raise RunError(f"the run in {path} is damaged: {error}") from error


def config_of(content: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that `config.json` holds.

    Raises:
        msgspec.ValidationError: A part is missing, or of another type.
    """

    def decoded(kind: type, model: Any) -> Any:
        if kind is not AnyModelConfig or not isinstance(model, dict):
            raise msgspec.ValidationError("the model must be an object")
        return msgspec.convert(model, ProgramConfig if "program" in model else ModelConfig)

    return msgspec.convert(content, RunConfig, dec_hook=decoded)


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a training needs to continue as if it had never stopped, in one file, so that its parts always match.

    Args:
        tensors: Weights, the optimizer's moments, the states of the random generators, by name.
        notes: Numbers, by name: epoch, steps, ...
    """

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, by the rest of their names."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def write(self, path: Path) -> None:
        """Write the checkpoint to `path`, whole or not at all.

        Raises:
            RunError: The disk is full, or the folder cannot be written to; the old file is kept.
        """
        write_whole(path, _safetensors(self.tensors, {_NOTES: json.dumps(self.notes)}))

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


def _safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file."""
    content: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu().contiguous()
        place = kept.untyped_storage().data_ptr()
        content[name] = kept.clone() if place in places else kept  # the format refuses tied weights
        places.add(place)
    return safetensors.torch.save(content, metadata)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, `path` holds either its old content or all of the new.

    Raises:
        RunError: It could not be written; nothing of it is left.
    """
    with run_errors(path):
        write_file(path, content)


@contextlib.contextmanager
def run_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `RunError` that says why a file or folder could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        reason = error.reason if isinstance(error, WriteError) else error.strerror or str(error)
        remedy = "Make room, or check the folder's permissions"
        if not path.parent.is_dir():
            reason, remedy = f"the folder {path.parent} is not there any more", "Do not delete it during a training"
        raise RunError(
            f"{path} could not be written: {reason}; what it held before is still there. {remedy}, and go on with "
            "--resume"
        ) from error


class RunWriter:
    """Writes a run folder, each file whole or not at all, the checkpoint after the files that belong to it.

    The first checkpoint replaces an old run: in one step if the folder holds nothing else. Otherwise the old run's
    files are removed, before the new ones are written.

    Args:
        path: The folder; made with the first checkpoint, so that a training that fails before leaves nothing.
        config: Goes into `config.json`.
        samples: Test images to keep, shape `(num_images, *data_shape)`: the first 256, binarized as `config` says.
        labels: Their classes, shape `(num_images,)`, for a conditional model.
        train_samples: Training images to keep: 256 of them, evenly spaced, binarized as `config` says.
        train_labels: Their classes.
        overwrite: Whether a run that is already there may be replaced.
        resume: Whether to resume a run that is already there.

    Attributes:
        checkpoint: The checkpoint to resume from; `None` for a new run.
        metrics: One entry for each saved epoch.

    Raises:
        RunError: `path` is a file, or holds a run without `overwrite` or `resume`, or the run to resume has another
            configuration.
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
        self._keep((_IMAGES, _LABELS), samples, labels, slice(NUM_SAMPLES))
        if train_samples is not None:
            picked = evenly_spaced(len(train_samples), NUM_SAMPLES)
            self._keep((_TRAIN_IMAGES, _TRAIN_LABELS), train_samples, train_labels, picked)
        if resume and (path / CHECKPOINT_FILE).exists():
            self.checkpoint = Checkpoint.read(path / CHECKPOINT_FILE)
            self._config = _config_to_resume(path, config)
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
            metrics: The metrics of the epoch.
            keep: Whether the checkpoint's weights become those of the run.
        """
        self.metrics.append(metrics)
        lines = "".join(json.dumps(dataclasses.asdict(line)) + "\n" for line in self.metrics)
        with self._folder() as folder:
            write_whole(folder / METRICS_FILE, lines.encode())  # before the weights, whose step refers to them
            if keep:
                weights = _safetensors(checkpoint.named(WEIGHTS), {_STEP: str(metrics.step)})
                write_whole(folder / WEIGHTS_FILE, weights)
            checkpoint.write(folder / CHECKPOINT_FILE)

    def save_evaluations(
        self,
        evaluations: Mapping[str, Evaluation],
        test_elbos: Tensor,
        outliers: Tensor | None = None,
        outlier_labels: Tensor | None = None,
    ) -> None:
        """Save the final evaluation.

        Args:
            evaluations: By the name of the set: `train`, `validation`, `test`.
            test_elbos: The ELBO of each test image, in nats, shape `(num_test,)`.
            outliers: The test images with the lowest, as the model sees them, shape `(num_outliers, *data_shape)`.
            outlier_labels: Their classes, for a conditional model.
        """
        tensors = {_ELBOS: test_elbos.float(), _OUTLIERS: outliers, _OUTLIER_LABELS: outlier_labels}
        given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        write_whole(self.path / TEST_ELBOS_FILE, _safetensors(given))
        content: dict[str, Any] = {name: dataclasses.asdict(each) for name, each in evaluations.items()}
        write_whole(self.path / EVALUATION_FILE, json.dumps(content, indent=2).encode() + b"\n")

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """Yield the folder to write to: the run's, or for a new run a hidden folder that is renamed at the end."""
        if self._begun:
            yield self.path
        elif self.checkpoint is None and _is_replaceable(self.path):
            with run_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with replace_folder(self.path.resolve(), replace=self._overwrite) as folder:
                        self._write_constant_files(folder)
                        yield folder
                except RunError as error:  # names the hidden folder: `run_errors` names the run's
                    raise error.__cause__ or error from None
        else:
            self._clear()
            self._write_constant_files(self.path)
            yield self.path
        self._begun = True

    def _clear(self) -> None:
        """Make the folder, and remove outdated files: a replaced run, or the evaluation of a resumed one."""
        outdated = [EVALUATION_FILE, TEST_ELBOS_FILE, *REPORT_FILES]
        if self.checkpoint is None:
            outdated += [CHECKPOINT_FILE, WEIGHTS_FILE, METRICS_FILE]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in (*(self.path / name for name in outdated), *self.path.glob(_LEFTOVERS)):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"the run's folder {self.path} cannot be written to: {error.strerror or error}") from error

    def _write_constant_files(self, folder: Path) -> None:
        """Write the files that do not change during the training."""
        content = json.dumps(msgspec.to_builtins(self._config), indent=2).encode()
        write_whole(folder / CONFIG_FILE, content + b"\n")
        write_whole(folder / SAMPLES_FILE, _safetensors(self._samples))


def check_writable(path: Path, overwrite: bool) -> None:
    """Raise `RunError` if `path` is a file, or holds a run and `overwrite` is not set."""
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
    """Whether the folder can be replaced as a whole: it does not exist, or holds only a run and can be renamed."""
    if not path.exists():
        return True
    names = {file.name for file in path.iterdir() if not file.match(_LEFTOVERS)}
    place = path.resolve()
    held = place.is_mount() or Path.cwd().is_relative_to(place) or not os.access(place.parent, os.W_OK | os.X_OK)
    return names <= _RUN_FILES and not held


def _config_to_resume(path: Path, config: RunConfig) -> RunConfig:
    """Return the configuration of a resumed run. Only the number of epochs and the command's options may change.

    Raises:
        RunError: Another option has changed.
    """
    before = read_config(path)
    if type(before.model) is not type(config.model):
        raise RunError(
            f"{path} was begun with {before.model.description}, got {config.model.description}; a resumed run keeps "
            "its options: give the same, or begin another run with --out"
        )
    for part in ("model", "training", "dataset"):
        was, now = (dataclasses.asdict(getattr(each, part)) for each in (before, config))
        for name in was:
            if was[name] == now[name] or (name == "epochs" and was["schedule"] != "cosine"):
                continue
            if name == "digest":
                raise RunError(
                    f"{path} was begun with other rows of {now['name']}: the data changed, or were split in another "
                    "way; give the same (--data, --split-seed, --scale, ...), or begin another run with --out"
                )
            raise RunError(
                f"{path} was begun with {name} {was[name]}, got {now[name]}; a resumed run keeps its options: "
                "give the same, or begin another run with --out"
            )
    return dataclasses.replace(before, training=config.training, command=config.command or before.command)
