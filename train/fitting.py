"""A whole training: epochs, validation, checkpoints, the final evaluation and the report."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import AnyModelConfig, Binarize, ModelConfig, ProgramConfig, TrainingConfig
from .data import Dataset, Images, Rows, binarize_once, check_range, evenly_spaced, standardisation_of
from .device import forked_rng
from .elbo import NUM_OUTLIERS, elbo_of_each, evaluate_each, importance_weighted_bound, lowest
from .errors import CollapseWarning, ConfigError, DivergedError, LabelError
from .evaluation import ElboSummary, Evaluation, collapse_advice
from .likelihoods import LIKELIHOODS
from .observers import Observer
from .processes import SINGLE, Processes
from .program import load_program
from .program.model import takes_labels
from .report import write_report
from .run import Checkpoint, DatasetInfo, EpochMetrics, Run, RunWriter, load_run, run_config
from .trainer import Trainer

_CPU = torch.device("cpu")

FINAL_PARTICLES = 10
"""Draws of z an image in the final evaluation."""
_NUM_EXAMPLE = 8  # rows to run a program with
_NUM_TRAINING = 10_000  # the first training images, for the final evaluation


def model_for(
    dataset: Dataset[Images], training: TrainingConfig, *, conditional: bool = False, **choices: Any
) -> ModelConfig:
    """Return the configuration of a model of `dataset`: shape, number of classes, and standardisation.

    A likelihood for values in [0, 1] takes the data as they are. For others, rows of a table are standardised by
    column, images by one mean and one scale.

    Args:
        dataset: The data that the model will be fitted to.
        training: How. Data that it binarizes are standardised after that.
        conditional: Whether both networks see the labels; the data set must have labels then.
        **choices: The other fields of `ModelConfig`.

    Raises:
        ConfigError: The choices do not go together, or do not fit the data.
        DatasetError: The values are outside the likelihood's range.
        LabelError: `conditional`, and the data set has no labels.
    """
    num_classes = dataset.num_classes if conditional else 0
    if conditional and num_classes == 0:
        raise LabelError(f"a conditional model needs labels, and {dataset.name} was loaded without any")
    model = ModelConfig(dataset.data_shape, num_classes=num_classes, **choices)
    unit_interval = LIKELIHOODS[model.likelihood].unit_interval if model.likelihood in LIKELIHOODS else True
    for images in (dataset.train, dataset.validation, dataset.test):
        if images is not None:
            check_range(images, unit_interval)
    if unit_interval:
        return model
    train = _binarized(dataset.train, training.binarize)
    data_loc, data_scale = standardisation_of(train, per_feature=len(dataset.data_shape) == 1)
    return dataclasses.replace(model, data_loc=data_loc, data_scale=data_scale)


def program_for(
    dataset: Dataset[Images], training: TrainingConfig, program: str, *, conditional: bool = False
) -> ProgramConfig:
    """Return the configuration of a Pyro program of your own, for `dataset`.

    Its model and guide take the observations as `x`, shape `(batch, *data_shape)`, and labels as `y`.

    Args:
        dataset: The data that it will be fitted to.
        training: How.
        program: `FILE.py:NAME` or `module:NAME`. NAME is an object with methods `model` and `guide`, a class or
            function that makes one when it is called without arguments, or a pair `(model, guide)`.
        conditional: Whether it gets the labels where its `y` has a default; without a default it always does.

    Raises:
        ConfigError: There is no such program, or its arguments are others.
        LabelError: It gets labels, and the data set has none.
    """
    with forked_rng(_CPU):
        torch.manual_seed(training.seed)
        labels = takes_labels(program, load_program(program).model, conditional)
    if labels and dataset.num_classes == 0:
        raise LabelError(f"{program} takes labels, and {dataset.name} was loaded without any")
    return ProgramConfig(program, dataset.data_shape, dataset.num_classes if labels else 0)


def example_rows(dataset: Dataset[Images], model: AnyModelConfig) -> tuple[Tensor, Tensor | None]:
    """Return a few training rows, on the CPU, with their labels where the model sees labels."""
    rows = evenly_spaced(len(dataset.train), _NUM_EXAMPLE).to(dataset.train.device)
    labels = dataset.train_labels if model.num_classes else None
    return dataset.train[rows].cpu(), None if labels is None else labels[rows.to(labels.device)].cpu()


def check_training(
    dataset: Dataset[Images],
    out: Path,
    model: AnyModelConfig,
    training: TrainingConfig | None = None,
    *,
    device: torch.device = _CPU,
    processes: Processes = SINGLE,
    overwrite: bool = False,
    resume: bool = False,
    export_check: bool = True,
) -> None:
    """Raise the errors that `fit` raises before its first step, for the same arguments; write nothing."""
    _prepared(
        dataset,
        out,
        model,
        training or TrainingConfig(),
        device=device,
        processes=processes,
        overwrite=overwrite,
        resume=resume,
        export_check=export_check,
    )


def fit(
    dataset: Dataset[Images],
    out: Path,
    model: AnyModelConfig,
    training: TrainingConfig | None = None,
    *,
    device: torch.device = _CPU,
    processes: Processes = SINGLE,
    overwrite: bool = False,
    resume: bool = False,
    export_check: bool = True,
    checkpoint_every: int = 0,
    iw_particles: int = 0,
    report: bool = True,
    observers: Sequence[Observer] = (),
    should_stop: Callable[[], bool] = lambda: False,
    command: Mapping[str, Any] | None = None,
) -> Run:
    """Fit a VAE, or a Pyro program of your own, and write a run.

    There are checkpoints during the training, evaluation and report at its end. On the CPU a run that was interrupted
    and resumed ends with the weights of one that was not, bit for bit. A `CollapseWarning` tells that the posterior has
    collapsed.

    Args:
        dataset: For training, validation and test. Only a conditional model sees its labels; the report always
            uses them. If `training` binarizes, validation and test images are binarized once.
        out: The run's folder.
        model: The model's configuration; `model_for` makes one for a data set, `program_for` that of a program.
        training: The training's configuration; by default `TrainingConfig()`.
        device: Where to train.
        processes: The processes that fit the model together. Each calls `fit`, and all must see the run's folder.
        overwrite: Whether a run that is already there may be replaced.
        resume: Whether to resume a run that is already there; if there is none, a new one begins.
        export_check: Whether to check before the first step that networks or a program of your own can be exported.
        checkpoint_every: Steps between checkpoints, in addition to those after each epoch; 0 for none.
        iw_particles: Particles of the importance-weighted bound in the final evaluation; 0 for none.
        report: Whether to write the report at the end.
        observers: Called as the training proceeds, in process 0.
        should_stop: Called after each step; `True` ends the training there, with a checkpoint. If one of several
            processes is told to stop, all stop after the next step.
        command: Options to keep in `config.json`, see `RunConfig`.

    Returns:
        The run, read back. Its last metrics' `complete` is `False` if `should_stop` ended it early.

    Raises:
        ConfigError: Options do not go together, or the training needs validation images and there are none.
        DatasetError: The images are out of range.
        DeviceError: The device has no fast instructions for the training's precision.
        DivergedError: The loss became NaN or infinite, or the ELBO of a quarter of the images did; the checkpoint
            before it stays.
        LabelError: The labels do not fit the model.
        ProgramError: A program cannot be run with given noise, or its rows depend on each other.
        TraceError: Networks or a program of your own cannot be exported.
        RunError: `out` already holds a run, the run to resume has another configuration, or `out` cannot be written to.
    """
    training = training or TrainingConfig()
    trainer, writer = _prepared(
        dataset,
        out,
        model,
        training,
        device=device,
        processes=processes,
        overwrite=overwrite,
        resume=resume,
        export_check=export_check,
        command=command,
    )
    fitting = _Fitting(trainer, dataset.to(device), writer, checkpoint_every, should_stop, processes=processes)
    observers = observers if processes.is_first else ()
    for observer in observers:
        observer.on_begin(out, trainer.model, fitting.dataset, tuple(writer.metrics))
    while not fitting.is_over():
        metrics = fitting.epoch([observer.on_step for observer in observers])
        for observer in observers:
            observer.on_epoch(metrics)
    if not processes.any(should_stop()):
        processes.from_first(lambda: fitting.finish(iw_particles, report, observers))
    for observer in observers:
        observer.on_end()
    run = load_run(out)
    if processes.is_first and "test" in run.evaluations:
        advice = collapse_advice(run.evaluations["test"], training, model)
        if advice is not None:
            warnings.warn(advice, CollapseWarning, stacklevel=2)
    return run


def _prepared(
    dataset: Dataset[Images],
    out: Path,
    model: AnyModelConfig,
    training: TrainingConfig,
    *,
    device: torch.device,
    processes: Processes,
    overwrite: bool,
    resume: bool,
    export_check: bool,
    command: Mapping[str, Any] | None = None,
) -> tuple[Trainer, RunWriter]:
    """Check everything and write nothing; return the trainer, restored if the run is resumed, and the writer."""
    if dataset.validation is None and (training.patience or training.schedule == "plateau"):
        needs = f"patience {training.patience}" if training.patience else "schedule plateau"
        raise ConfigError(f"{needs} needs a validation ELBO; set validation images aside (--validation-fraction 0.1)")
    seen = _as_seen(dataset, model)
    trainer = Trainer(model, training, device, processes, example_rows(seen, model))
    trainer.check(seen.train, seen.train_labels)
    if export_check:
        processes.from_first(trainer.model.check_exportable)
    writer = processes.from_first(
        lambda: RunWriter(
            out,
            run_config(model, training, DatasetInfo.of(seen), command),
            seen.test,
            seen.test_labels,
            train_samples=seen.train,
            train_labels=seen.train_labels,
            overwrite=overwrite,
            resume=resume,
        )
    )
    if writer.checkpoint is not None:
        trainer.restore(writer.checkpoint)
    return trainer, writer


class _Fitting:
    """A training in progress.

    Args:
        trainer: Holds the model.
        dataset: On the trainer's device.
        writer: Writes the run.
        checkpoint_every: Steps between checkpoints; 0 for none within an epoch.
        should_stop: See `fit`.
        processes: See `fit`.
    """

    def __init__(
        self,
        trainer: Trainer,
        dataset: Dataset[Images],
        writer: RunWriter,
        checkpoint_every: int,
        should_stop: Callable[[], bool],
        *,
        processes: Processes,
    ) -> None:
        self.dataset = dataset
        how = trainer.config.binarize
        seen = _as_seen(dataset, trainer.model.config)
        validation = None if seen.validation is None else _binarized(seen.validation, how)
        self._seen = dataclasses.replace(seen, test=_binarized(seen.test, how), validation=validation)
        self._trainer, self._writer = trainer, writer
        self._checkpoint_every, self._should_stop = checkpoint_every, should_stop
        self._processes = processes
        self._stopped = False

    @property
    def _validation_elbos(self) -> list[float]:
        """The robust mean of each epoch: one outlier may change the mean by any amount."""
        elbos = [line.validation_elbo_robust_nats for line in self._writer.metrics]
        return [elbo for elbo in elbos if elbo is not None]

    def is_over(self) -> bool:
        """Whether the training was stopped, has made its epochs, or has run out of patience."""
        config = self._trainer.config
        return self._stopped or self._trainer.epoch >= config.epochs or config.is_finished(self._validation_elbos)

    def epoch(self, on_step: Sequence[Callable[[Tensor], None]]) -> EpochMetrics:
        """Fit an epoch, or the rest of one, and save it."""
        trainer, writer, from_first = self._trainer, self._writer, self._processes.from_first
        trainer.halvings = trainer.config.halvings_after(self._validation_elbos)

        def tell(loss: Tensor) -> None:
            for observe in on_step:
                observe(loss)

        start = time.perf_counter()
        while True:
            loss = trainer.fit_epoch(self._seen.train, tell, self._pause, labels=self._seen.train_labels)
            if not trainer.in_epoch:
                break
            from_first(functools.partial(writer.save_checkpoint, trainer.checkpoint()))
            if self._stopped:
                break
        seconds = time.perf_counter() - start
        writer.metrics = from_first(functools.partial(self._save_epoch, trainer.checkpoint(), loss, seconds))
        return writer.metrics[-1]

    def finish(self, iw_particles: int, report: bool, observers: Sequence[Observer]) -> None:
        """Evaluate the run's weights, those of its best epoch, and write the report, unless told to stop."""
        model, seen = self._trainer.model, self._seen
        run = load_run(self._writer.path)
        model.load_state_dict(run.model.state_dict())

        def on_bound(done: int) -> None:
            if self._should_stop():
                raise InterruptedError
            for observer in observers:
                observer.on_bound(done, len(seen.test))

        try:
            evaluations, test_elbos = self._final_evaluations(iw_particles, on_bound)
        except InterruptedError:
            return
        rows = lowest(test_elbos, NUM_OUTLIERS).to(seen.test.device)
        outlier_labels = None if seen.test_labels is None else seen.test_labels[rows]
        self._writer.save_evaluations(evaluations, test_elbos, seen.test[rows], outlier_labels)
        if report:
            images, labels = _finite(seen.test, self.dataset.test_labels, test_elbos)
            class_names = self.dataset.class_names
            write_report(self._writer.path, model, images, labels, run.metrics, evaluations, run.config, class_names)

    def _save_epoch(self, checkpoint: Checkpoint, loss: float, seconds: float) -> list[EpochMetrics]:
        """Evaluate and save; return the metrics of all epochs."""
        trainer, writer, seen = self._trainer, self._writer, self._seen
        elbos = {"test": self._elbos("test", self.dataset.test, seen.test, seen.test_labels)}
        if self.dataset.validation is not None and seen.validation is not None:
            elbos["validation"] = self._elbos(
                "validation", self.dataset.validation, seen.validation, seen.validation_labels
            )
        test, validation = elbos["test"], elbos.get("validation")
        metrics = EpochMetrics(
            epoch=trainer.epoch + trainer.in_epoch,
            train_loss_nats=loss,
            test_elbo_nats=test.mean_nats,
            num_particles=1,
            epoch_seconds=seconds,
            complete=not trainer.in_epoch,
            step=trainer.steps,
            learning_rate=trainer.learning_rate,
            beta=trainer.beta,
            validation_elbo_nats=None if validation is None else validation.mean_nats,
            test_elbo_median_nats=test.median_nats,
            validation_elbo_median_nats=None if validation is None else validation.median_nats,
            validation_elbo_robust_nats=None if validation is None else validation.robust_nats,
            not_finite={name: each.not_finite for name, each in elbos.items() if each.not_finite is not None},
        )
        before = self._validation_elbos
        best = validation is None or all(validation.robust_nats > elbo for elbo in before)
        writer.save_epoch(checkpoint, metrics, keep=best and (metrics.complete or not before))
        return writer.metrics

    def _pause(self) -> bool:
        """Whether a checkpoint is due, or the training was stopped."""
        self._stopped = self._processes.any_before(self._should_stop())
        due = self._checkpoint_every > 0 and self._trainer.steps % self._checkpoint_every == 0
        return self._stopped or due

    def _elbos(self, name: str, images: Images, seen: Images, labels: Tensor | None) -> ElboSummary:
        """Evaluate a set, as given and as the model sees it; a few outliers do not end the training."""
        elbos = ElboSummary.of(elbo_of_each(self._trainer.model, seen, labels=labels), images)
        if elbos.not_finite is not None and not math.isfinite(elbos.robust_nats):
            raise DivergedError(
                f"the ELBO of {elbos.not_finite.count:,} of {len(seen):,} {name} rows, at least a quarter, was NaN or "
                f"infinite after epoch {self._trainer.epoch}; the last checkpoint, if there is one, is from before "
                "it. Begin another run with a lower learning rate (--learning-rate)"
            )
        return elbos

    def _final_evaluations(
        self, iw_particles: int, on_bound: Callable[[int], None]
    ) -> tuple[dict[str, Evaluation], Tensor]:
        """Evaluate the model on the test, the validation and the first of the training images.

        Args:
            iw_particles: Draws of z a test image for the importance-weighted bound, 0 to leave it out.
            on_bound: Called with the number of test images that have their bound; an exception from it ends the
                evaluation.

        Returns:
            The evaluations by the name of the set, and the ELBO of each test image, in nats, shape `(num_test,)`.
        """
        model, given, seen, how = self._trainer.model, self.dataset, self._seen, self._trainer.config.binarize
        each = evaluate_each(model, seen.test, seen.test_labels, FINAL_PARTICLES)
        bounds = None
        if iw_particles:
            bounds = importance_weighted_bound(model, seen.test, seen.test_labels, iw_particles, on_bound)
        some = binarize_once(seen.train[:_NUM_TRAINING], how)
        labels = None if seen.train_labels is None else seen.train_labels[:_NUM_TRAINING]
        found = {
            "test": Evaluation.of(each, given.test, bounds, iw_particles),
            "train": Evaluation.of(evaluate_each(model, some, labels, FINAL_PARTICLES), given.train),
        }
        if given.validation is not None and seen.validation is not None:
            validation = evaluate_each(model, seen.validation, seen.validation_labels, FINAL_PARTICLES)
            found["validation"] = Evaluation.of(validation, given.validation)
        if len(some) < len(seen.train):
            found["train"] = dataclasses.replace(found["train"], num_in_set=len(seen.train))
        return {name: dataclasses.replace(part, binarize=how) for name, part in found.items()}, each.elbo


def _finite(images: Images, labels: Tensor | None, elbos: Tensor) -> tuple[Images, Tensor | None]:
    """Return the images whose ELBO is finite, with their labels: those that can be drawn."""
    finite = torch.isfinite(elbos).to(images.device)
    if finite.all():
        return images, labels
    rows = finite.nonzero().flatten()
    kept = images.take(rows) if isinstance(images, Rows) else images[rows]
    return kept, None if labels is None else labels[rows.to(labels.device)]


def _as_seen(dataset: Dataset[Images], model: AnyModelConfig) -> Dataset[Images]:
    """Return the data set without labels, unless the model is conditional."""
    return dataset if model.num_classes else dataset.without_labels()


def _binarized(images: Images, how: Binarize) -> Images:
    """Return images binarized once, so that epochs compare."""
    return images if how == "none" else binarize_once(images[:], how)
