"""`python -m train`, also installed as `vae-train`."""

from __future__ import annotations

from . import requirements  # noqa: F401 - checks, before anything else is imported

# isort: split

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

import click
from click.core import ParameterSource

from .config import TrainingConfig
from .data import DataConfig, Dataset, load_data
from .errors import DatasetError, FirstFailedError, TrainError
from .fitting import fit
from .images import Images
from .model_for import model_for
from .observers import Observer, ProgressDisplay
from .options import data_options, model_options, run_options, training_options
from .plan import plan_of
from .processes import Processes
from .run import CHECKPOINT_FILE, SETTINGS_FILE
from .run_writer import check_writable
from .settings import config_option, dump_settings, settings_for
from .torchrun import joined, this_process

_GOES_WITH = {
    "levels": ("likelihood", "categorical"),
    "components": ("latent", "mixture"),
    "plateau_epochs": ("schedule", "plateau"),
}
_NOT_OF_THE_RUN = ("out", "force", "resume", "dry_run")
_SIGNALLED = 128  # and the signal's number, as shells report it


class _Refused(click.ClickException):
    exit_code = 2


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--cuda", is_flag=True, help="Train on the CUDA device; an error where there is none.")
@data_options
@model_options
@training_options
@run_options
@config_option
@click.version_option(package_name="edgevae", prog_name="vae-train")
@click.pass_context
def main(ctx: click.Context, /, out: Path | None, force: bool, resume: bool, dry_run: bool, **options: Any) -> None:
    """Fit Pyro's VAE with SVI and save the run.

    The run goes to --out: configuration, checkpoints, weights, metrics, evaluation and report. Ctrl-C and SIGTERM end
    the training with a checkpoint of that moment, and --resume goes on from there; so it does after a crash.

    \b
    Examples:
      python -m train --dataset digits --epochs 50
      python -m train --cuda --dataset mnist --data-dir ~/mnist
      python -m train --architecture conv --latent hierarchical --z-dims 32,16
      python -m train --latent mixture --components 10 --binarize stochastic
      python -m train --data faces/ --resize 64,64 --architecture conv --validation-fraction 0.1 --patience 10
      python -m train --data sensors.npy --likelihood normal --z-dim 8
      python -m train --resume --out runs/mnist-mlp
      torchrun --nproc-per-node 4 --max-restarts 3 -m train --out runs/mnist --resume
    """
    _without_default_dataset(ctx, options)
    out = out or Path("runs") / _default_name(options)
    if force and resume:
        raise click.UsageError("--force replaces a run and --resume goes on with it; give one of them")
    if resume:
        options = _as_begun(ctx, out, options)
        _without_default_dataset(ctx, options)
    _check_usage(ctx, options)
    try:
        with joined(options["cuda"]) as processes:
            stopped_by = _train(processes, out, force, resume, dry_run, **options)
    except FirstFailedError:
        ctx.exit(_Refused.exit_code)
    except (TrainError, OSError) as error:
        raise _Refused(f"{this_process()}{error}") from error
    if stopped_by:
        ctx.exit(_SIGNALLED + stopped_by)


def _train(processes: Processes, out: Path, force: bool, resume: bool, dry_run: bool, **options: Any) -> int:
    """Train as the options say; return the signal that ended it early, 0 for none."""
    given = {name: value for name, value in options.items() if name != "cuda"}
    say = click.echo if processes.is_first else _say_nothing
    training = TrainingConfig(**{field.name: given.pop(field.name) for field in fields(TrainingConfig)})
    data = DataConfig(**{field.name: given.pop(field.name) for field in fields(DataConfig)})
    observers = _loggers(tensorboard=given.pop("tensorboard"), mlflow=given.pop("mlflow"))
    leaves = {name: given.pop(name) for name in ("checkpoint_every", "iw_particles", "report")}
    if not (resume and (out / CHECKPOINT_FILE).exists()):
        processes.from_first(lambda: check_writable(out, overwrite=force))
    conditional = given.pop("conditional")
    dataset = processes.first_ahead(lambda: _loaded(data, conditional))
    z_dims = given.pop("z_dims")
    model = model_for(dataset, training, conditional=conditional, z_dim=z_dims[0], upper_dims=z_dims[1:], **given)
    say(plan_of(dataset, model, training, processes.device, out))
    if processes.world_size > 1:
        say(f"processes {processes.world_size}, each with its part of every batch")
    if dry_run:
        say("Nothing was trained (--dry-run).")
        return 0
    settings = dump_settings({name: value for name, value in options.items() if name not in _NOT_OF_THE_RUN})
    with _stop_signal() as stopped_by, _shown(training, processes) as shown:
        run = fit(
            dataset,
            out,
            model,
            training,
            device=processes.device,
            processes=processes,
            overwrite=force,
            resume=resume,
            **leaves,
            observers=[shown, *observers],
            should_stop=lambda: stopped_by() != 0,
            settings=settings,
        )
    stopped = processes.any(stopped_by() != 0)
    last = run.metrics[-1]
    if stopped:
        say(f"Stopped in epoch {last.epoch}; the checkpoint is saved. Go on with --resume.")
    elif last.epoch < training.epochs:
        say(f"Ended after epoch {last.epoch}: {training.patience} epochs brought no better validation ELBO.")
    elbo, num_particles = run.test_elbo
    one = "an image" if len(dataset.data_shape) == 3 else "a row"
    say(f"Test ELBO {elbo:.2f} nats {one} ({num_particles} particles). Export it with: vae-export {out}")
    return stopped_by() or (signal.SIGTERM if stopped else 0)


def _say_nothing(_text: str) -> None:
    """Speak in a process that is not the first."""


def _shown(training: TrainingConfig, processes: Processes) -> contextlib.AbstractContextManager[Observer]:
    first = processes.is_first
    return ProgressDisplay(training.epochs, training.batch_size) if first else contextlib.nullcontext(Observer())


def _loaded(data: DataConfig, conditional: bool) -> Dataset[Images]:
    """Return the data, with labels where there are any: the report colours by them what the model does not see."""
    if conditional:
        return load_data(data, labels=True)
    try:
        return load_data(data, labels=True)
    except DatasetError:
        return load_data(data, labels=False)


def _check_usage(ctx: click.Context, options: Mapping[str, Any]) -> None:
    for name, (choice, value) in _GOES_WITH.items():
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE and options[choice] != value:
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} goes with --{choice} {value}, got --{choice} {options[choice]}")
    if options["tf32"] and not options["cuda"]:
        raise click.UsageError("--tf32 goes with --cuda: the CPU has no TF32")


def _without_default_dataset(ctx: click.Context, options: dict[str, Any]) -> None:
    """Take away the data set that nobody asked for, where there are own data."""
    if options["data"] is not None and ctx.get_parameter_source("dataset") is ParameterSource.DEFAULT:
        options["dataset"] = None


def _as_begun(ctx: click.Context, out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the run that goes on, where neither the command line nor a file says another thing."""
    if not (out / SETTINGS_FILE).exists():
        return dict(options)
    begun = settings_for(ctx.command, out / SETTINGS_FILE)
    merged = dict(options)
    for parameter in ctx.command.params:
        name = str(parameter.name)
        if name in begun and ctx.get_parameter_source(name) is ParameterSource.DEFAULT:
            merged[name] = parameter.type_cast_value(ctx, begun[name])
    return merged


def _loggers(*, tensorboard: bool, mlflow: bool) -> list[Observer]:
    loggers: list[Observer] = []
    if tensorboard:
        from .observers import TensorBoardLog

        loggers.append(TensorBoardLog())
    if mlflow:
        from .observers import MlflowLog

        loggers.append(MlflowLog())
    return loggers


def _default_name(options: Mapping[str, Any]) -> str:
    """Name a run by its data, its architecture, and what it has that the reference has not."""
    usual = {"likelihood": "bernoulli", "latent": "normal", "binarize": "none"}
    parts = [options["data"].stem if options["data"] else options["dataset"]]
    parts += [options["architecture"].partition(":")[0]]
    parts += [options[name] for name, value in usual.items() if options[name] != value]
    parts += ["conditional"] * options["conditional"]
    parts += [f"beta{options['beta']:g}"] * (options["beta"] != 1)
    return "-".join(parts)


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], int]]:
    """Turn the first Ctrl-C or SIGTERM into a number that is asked between steps; a second one ends the program."""
    received = 0

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = number

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
