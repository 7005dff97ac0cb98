"""The whole training: epochs, evaluation, checkpoints, report."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .binarization import binarize_once
from .checkpoint import Checkpoint
from .config import ModelConfig, TrainingConfig
from .data import Dataset
from .elbo import evaluate_elbo
from .errors import ConfigError, DivergedError
from .final import final_evaluations
from .images import Images
from .observers import Observer
from .processes import ALONE, Processes
from .report import write_report
from .run import DatasetInfo, EpochMetrics, Run, load_run, run_config
from .run_writer import RunWriter
from .schedule import halvings_after, is_enough
from .trainer import Trainer

_CPU = torch.device("cpu")


def fit(
    dataset: Dataset[Images],
    out: Path,
    model: ModelConfig,
    training: TrainingConfig | None = None,
    *,
    device: torch.device = _CPU,
    processes: Processes = ALONE,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: int = 0,
    iw_particles: int = 0,
    report: bool = True,
    observers: Sequence[Observer] = (),
    should_stop: Callable[[], bool] = lambda: False,
    settings: str = "",
) -> Run:
    """Fit a VAE, and leave a run: checkpoints as it goes on, evaluation and report at its end.

    A run that is resumed ends, on the CPU, with the weights of one that was never interrupted, bit for bit.

    Args:
        dataset: What to fit to, to validate and to test on. A model that is not conditional does not see its labels;
            the report does. Where `training` binarizes, it does so with validation and test images too, once.
        out: The run's folder.
        model: The model's choices; `model_for` makes them for a data set.
        training: The training's, by default all as they come.
        device: Where to train.
        processes: That fit the model together, each by such a call; the run's folder must be one that all of them see.
        overwrite: Whether a run that is already there may be replaced.
        resume: Whether to go on with a run that is already there; where there is none, it begins.
        checkpoint_every: Steps after which a checkpoint is saved, beside that at the end of each epoch; 0 for none.
        iw_particles: Particles of the importance-weighted bound in the final evaluation; 0 for none.
        report: Whether to draw the report at the end.
        observers: Are told how the training goes; of several processes the first one's are.
        should_stop: Asked after each step; `True` ends the training there, with a checkpoint of that moment. Where one
            of several processes is told to stop, all of them do, after the next step.
        settings: What the run keeps as `settings.toml`, for whoever wants to begin it again.

    Returns:
        The run, read back. Its last metrics' `complete` is `False` where `should_stop` ended it early.

    Raises:
        ConfigError: The training needs validation images, and there are none.
        DeviceError: The device has no quick instructions for the training's precision.
        DivergedError: The loss or an ELBO became NaN or infinite; the checkpoint before it stays.
        RunError: `out` is in the way, or cannot be written to.
    """
    training = training or TrainingConfig()
    if dataset.validation is None and (training.patience or training.schedule == "plateau"):
        needs = f"patience {training.patience}" if training.patience else "schedule plateau"
        raise ConfigError(f"{needs} goes by the validation ELBO; set validation images aside (--validation-fraction)")
    seen = dataset if model.num_classes else dataset.without_labels()
    config = run_config(model, training, DatasetInfo.of(seen))
    writer = processes.from_first(
        lambda: RunWriter(
            out,
            config,
            seen.test,
            seen.test_labels,
            train_samples=seen.train,
            train_labels=seen.train_labels,
            overwrite=overwrite,
            resume=resume,
            settings=settings,
        )
    )
    trainer = Trainer(model, training, device, processes)
    if writer.checkpoint is not None:
        trainer.restore(writer.checkpoint)
    fitting = _Fitting(trainer, dataset.to(device), writer, checkpoint_every, should_stop, processes=processes)
    observers = observers if processes.is_first else ()
    for observer in observers:
        observer.on_begin(out, trainer.vae, fitting.dataset, tuple(writer.metrics))
    while not fitting.is_over():
        metrics = fitting.epoch([observer.on_step for observer in observers])
        for observer in observers:
            observer.on_epoch(metrics)
    if not processes.any(should_stop()):
        processes.from_first(lambda: fitting.finish(iw_particles, report, observers))
    for observer in observers:
        observer.on_end()
    return load_run(out)


class _Fitting:
    """A training under way.

    Args:
        trainer: Holds the model.
        dataset: On the trainer's device.
        writer: Where the run goes.
        checkpoint_every: Steps after which a checkpoint is saved; 0 for none.
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
        self._seen = dataset if trainer.vae.config.num_classes else dataset.without_labels()
        self._test = _binarized(dataset.test, trainer)
        self._validation = None if dataset.validation is None else _binarized(dataset.validation, trainer)
        self._trainer, self._writer = trainer, writer
        self._checkpoint_every, self._should_stop = checkpoint_every, should_stop
        self._processes = processes
        self._stopped = False

    @property
    def _validation_elbos(self) -> list[float]:
        return [line.validation_elbo_nats for line in self._writer.metrics if line.validation_elbo_nats is not None]

    def is_over(self) -> bool:
        """Whether the training was stopped, has made its epochs, or has learnt enough."""
        config = self._trainer.config
        return self._stopped or self._trainer.epoch >= config.epochs or is_enough(config, self._validation_elbos)

    def epoch(self, on_step: Sequence[Callable[[torch.Tensor], None]]) -> EpochMetrics:
        """Make an epoch, or the rest of one, and save it."""
        trainer, writer, from_first = self._trainer, self._writer, self._processes.from_first
        trainer.halvings = halvings_after(trainer.config, self._validation_elbos)

        def tell(loss: torch.Tensor) -> None:
            for each in on_step:
                each(loss)

        start = time.perf_counter()
        while True:
            loss = trainer.fit_epoch(self.dataset.train, tell, self._pause, labels=self._seen.train_labels)
            if not trainer.in_epoch:
                break
            from_first(functools.partial(writer.save_checkpoint, trainer.checkpoint()))
            if self._stopped:
                break
        seconds = time.perf_counter() - start
        writer.metrics = from_first(functools.partial(self._save_epoch, trainer.checkpoint(), loss, seconds))
        return writer.metrics[-1]

    def _save_epoch(self, checkpoint: Checkpoint, loss: float, seconds: float) -> list[EpochMetrics]:
        """Evaluate and save; return the metrics of all epochs."""
        trainer, writer = self._trainer, self._writer
        metrics = EpochMetrics(
            epoch=trainer.epoch + trainer.in_epoch,
            train_loss_nats=loss,
            test_elbo_nats=self._elbo("test", self._test, self._seen.test_labels),
            num_particles=1,
            epoch_seconds=seconds,
            complete=not trainer.in_epoch,
            step=trainer.steps,
            learning_rate=trainer.learning_rate,
            beta=trainer.beta,
            validation_elbo_nats=None
            if self._validation is None
            else self._elbo("validation", self._validation, self._seen.validation_labels),
        )
        elbos = self._validation_elbos
        best = metrics.validation_elbo_nats is None or all(metrics.validation_elbo_nats > elbo for elbo in elbos)
        writer.save_epoch(checkpoint, metrics, keep=best and (metrics.complete or not elbos))
        return writer.metrics

    def finish(self, iw_particles: int, report: bool, observers: Sequence[Observer]) -> None:
        """Evaluate the run's weights, which are the best epoch's, and draw the report, unless told to stop."""
        vae, config = self._trainer.vae, self._trainer.config
        run = load_run(self._writer.path)
        vae.load_state_dict(run.vae.state_dict())
        scored = dataclasses.replace(self._seen, test=self._test, validation=self._validation)

        def on_bound(done: int) -> None:
            if self._should_stop():
                raise InterruptedError
            for observer in observers:
                observer.on_bound(done, len(scored.test))

        try:
            evaluations, test_elbos = final_evaluations(vae, scored, config.binarize, iw_particles, on_bound)
        except InterruptedError:
            return
        self._writer.save_evaluations(evaluations, test_elbos)
        if report:
            data, folder = self.dataset, self._writer.path
            shown = (vae, self._test, data.test_labels, run.metrics, evaluations, run.config, data.class_names)
            write_report(folder, *shown)

    def _pause(self) -> bool:
        """Whether a checkpoint is due, or the training was stopped."""
        self._stopped = self._processes.any_before(self._should_stop())
        due = self._checkpoint_every > 0 and self._trainer.steps % self._checkpoint_every == 0
        return self._stopped or due

    def _elbo(self, name: str, images: Images, labels: torch.Tensor | None) -> float:
        elbo = evaluate_elbo(self._trainer.vae, images, labels=labels)
        if not math.isfinite(elbo):
            raise DivergedError(
                f"the {name} ELBO became {elbo} after epoch {self._trainer.epoch}; the last checkpoint is from before "
                "it. Begin another run with a lower learning rate (--learning-rate)"
            )
        return elbo


def _binarized(images: Images, trainer: Trainer) -> Images:
    """Return images that are scored: as the training sees them, but always the same."""
    how = trainer.config.binarize
    return images if how == "none" else binarize_once(images[:], how)
