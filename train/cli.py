"""`python -m train`, also installed as `vae-train`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args

import click
import torch
from click.core import ParameterSource

from edgevae.cli.sections import SectionedCommand, SectionOption

from .config import MAX_SEED, AnyModelConfig, Binarize, ModelConfig, Precision, Schedule, TrainingConfig
from .data import DATASET_NAMES, DataConfig, Dataset, Images, load_data
from .device import forked_rng
from .errors import CollapseWarning, ConfigError, DatasetError, FirstFailedError, TrainError
from .evaluation import collapse_advice
from .fitting import check_training, example_rows, fit, model_for, program_for
from .latents import LATENTS
from .likelihoods import LIKELIHOODS
from .models import make_model
from .networks import ARCHITECTURES, check_options, networks_of
from .observers import MlflowLog, Observer, ProgressDisplay, TensorBoardLog
from .processes import Processes, joined, this_process
from .run import CHECKPOINT_FILE, WEIGHTS_FILE, Checkpoint, RunConfig, check_writable, read_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_REQUIRES = {
    "levels": ("likelihood", "categorical"),
    "components": ("latent", "mixture"),
    "plateau_epochs": ("schedule", "plateau"),
}
"""Options that need a certain value of another option."""

_TRAINING_OPTIONS = {field.name for field in dataclasses.fields(TrainingConfig)}
_MODEL_OPTIONS = {
    *(
        "program",
        "architecture",
        "architecture_options",
        "hidden_dim",
        "z_dims",
        "likelihood",
        "levels",
        "latent",
        "components",
        "conditional",
    ),
}
_OF_ANY_MODEL = {"program", "conditional"}
"""Options of a model that a Pyro program of the user's own does not say itself."""

_SECTIONS = ("Data", "Model", "Objective", "Training", "Output")
_SIGNALLED = 128  # exit codes of a program that a signal ended: 128 and the signal's number

_AT_LEAST_0, _AT_LEAST_1, _AT_LEAST_2 = click.IntRange(min=0), click.IntRange(min=1), click.IntRange(min=2)
_PATH = click.Path(exists=True, path_type=Path)
_FRACTION = click.FloatRange(0, 1, max_open=True)

_data, _model, _objective, _training, _output = (
    functools.partial(click.option, cls=SectionOption, section=section) for section in _SECTIONS
)


class _RefusedError(click.ClickException):
    exit_code = 2


class Architecture(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """The name of an architecture, or two classes of your own, like `my_nets:TanhEncoder,TanhDecoder`."""

    name = "architecture"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name if there are such networks."""
        try:
            networks_of(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return value


class NamedValues(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """Values by name, with commas between them, like `width=64,norm=true`."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Return the values; numbers, true and false are read as such, anything else as text."""
        if isinstance(value, Mapping):
            return dict(value)
        found: dict[str, Any] = {}
        for part in value.split(","):
            name, separator, text = (each.strip() for each in part.partition("="))
            if not separator or not name.isidentifier() or name in found:
                self.fail(f"expected NAME=VALUE, each name once, like width=64, got {value!r}", param, ctx)
            found[name] = text
            with contextlib.suppress(ValueError):
                number = json.loads(text)
                found[name] = number if isinstance(number, bool | int | float) else text
        return found


def _merged(ctx: click.Context, param: click.Parameter, values: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """Merge the values of an option that was given several times."""
    merged: dict[str, Any] = {}
    for value in values:
        if twice := sorted(merged.keys() & value.keys()):
            raise click.BadParameter(f"{', '.join(twice)} is set twice; keep one", ctx, param)
        merged |= value
    return merged


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """Numbers with commas between them, like `0,16`.

    Args:
        example: An example for error messages.
        kind: Type of each number.
        count: How many there must be; `None` for any.
    """

    name = "numbers"

    def __init__(self, example: str, kind: type[float] = float, count: int | None = None) -> None:
        self._example, self._kind, self._count = example, kind, count

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the numbers, of any value."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self._kind(number) for number in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or self._count not in {None, len(numbers)}:
            count = "" if self._count is None else f"{self._count} "
            self.fail(
                f"expected {count}{self.name} with commas between them, like {self._example}, got {value!r}", param, ctx
            )
        return numbers


class Sizes(Numbers):
    """Integers with commas between them, like `32,16`.

    Args:
        example: See `Numbers`.
        count: See `Numbers`.
    """

    name = "sizes"

    def __init__(self, example: str, count: int | None = None) -> None:
        super().__init__(example, int, count)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the sizes, each at least 1."""
        sizes = super().convert(value, param, ctx)
        if min(sizes) < 1:
            self.fail(f"expected sizes of at least 1, got {min(sizes)}", param, ctx)
        return sizes


def options_in(command: click.Command, path: Path) -> dict[str, str | list[str]]:
    """Return the options in a TOML file, by parameter name, as text that click reads like the command line.

        seed = 3

        [model]
        z-dims = [32, 16]

    The tables are the sections of `--help`, in lower case. They only help the reader: any option may be in any table.

    Raises:
        click.BadParameter: The file cannot be read or is not TOML, or a key is not an option or is set twice.
    """
    known = {
        name[2:]: option
        for option in command.params
        if isinstance(option, click.Option) and not option.is_eager
        for name in option.opts
        if name.startswith("--")
    }
    found: dict[str, str | list[str]] = {}
    for key, value in _settings_in(path):
        name = key.replace("_", "-")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"the options are {', '.join(sorted(known))}"
            _refuse_config(path, f"{key} is not an option; {remedy}")
        option = known[name]
        if str(option.name) in found:
            _refuse_config(path, f"{key} is set twice; keep one")
        if isinstance(value, dict):
            _refuse_config(path, f"{key} must be a value, got a table")
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        found[str(option.name)] = [text] if option.multiple else text
    return found


def _settings_in(path: Path) -> list[tuple[str, Any]]:
    """Return the keys and values of a TOML file, those in tables included."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        _refuse_config(path, f"the file cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        _refuse_config(path, f"the file is not in UTF-8: {error.reason} at byte {error.start}")
    except tomllib.TOMLDecodeError as error:
        _refuse_config(path, f"the file is not TOML: {error}")
    tables = [section.lower() for section in _SECTIONS]
    settings: list[tuple[str, Any]] = []
    for key, value in content.items():
        if not isinstance(value, dict):
            settings.append((key, value))
        elif key in tables:
            settings += value.items()
        else:
            _refuse_config(path, f"there is no table [{key}]; the tables are {', '.join(f'[{x}]' for x in tables)}")
    return settings


def _refuse_config(path: Path, what: str) -> NoReturn:
    raise click.BadParameter(f"{path}: {what}", param_hint="--config")


def _use_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    if path is not None:
        ctx.default_map = {**(ctx.default_map or {}), **options_in(ctx.command, path)}


@click.command(cls=SectionedCommand, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@_data("--dataset", type=click.Choice(DATASET_NAMES), default="mnist", help="Known images to train on.")
@_data(
    "--data",
    type=_PATH,
    help="Own data instead of --dataset: .npy, .npz with x and y, IDX, or a folder of images.",
)
@_data(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the IDX files of --dataset, plain or gzip. Without it they are downloaded to data/.",
)
@_data("--validation-fraction", type=_FRACTION, default=0.0, help="Fraction of the training data to validate on.")
@_data("--validation-data", type=_PATH, help="Own data to validate on.")
@_data(
    "--test-fraction", type=_FRACTION, default=0.1, help="Fraction of --data to test on, if there is no --test-data."
)
@_data("--test-data", type=_PATH, help="Own data to test on.")
@_data("--split-seed", type=_AT_LEAST_0, default=0, help="Seed of the split into training, validation and test data.")
@_data("--scale", type=Numbers("0,16", count=2), help="LOW,HIGH: values of own data that become 0 and 1.")
@_data("--resize", type=Sizes("28,28", count=2), help="HEIGHT,WIDTH to which image files are resized.")
@_data("--grey", is_flag=True, help="Convert colour images to grey.")
@_model(
    "--architecture",
    type=Architecture(),
    metavar="|".join([*ARCHITECTURES, "MODULE:ENCODER,DECODER"]),
    default="mlp",
    help="The networks; MODULE:ENCODER,DECODER are classes of your own, like my_nets:Encoder,Decoder in my_nets.py, or "
    "path/my_nets.py:Encoder,Decoder.",
)
@_model(
    "--architecture-option",
    "--architecture-options",
    "architecture_options",
    type=NamedValues(),
    multiple=True,
    callback=_merged,
    metavar="NAME=VALUE",
    help="Arguments of the constructors of your own networks, like width=64,depth=3.",
)
@_model(
    "--z-dim",
    "--z-dims",
    "z_dims",
    type=Sizes("32,16"),
    default="50",
    help="Latent dimensions; for hierarchical one number a level, the lowest first, like 32,16.",
)
@_model("--hidden-dim", type=_AT_LEAST_1, default=400, help="Width of the hidden layers.")
@_model("--likelihood", type=click.Choice(list(LIKELIHOODS)), default="bernoulli", help="p(x|z).")
@_model("--latent", type=click.Choice(list(LATENTS)), default="normal", help="p(z).")
@_model(
    "--conditional",
    is_flag=True,
    help="Both networks see the labels, so that a class can be generated; of a program: it gets them as y.",
)
@_model("--levels", type=_AT_LEAST_2, default=8, help="Values that a pixel may have; for categorical.")
@_model("--components", type=_AT_LEAST_2, default=10, help="Components of p(z); for mixture.")
@_model(
    "--program",
    metavar="PLACE",
    help="Train a Pyro program of your own, as it is: FILE.py:NAME or module:NAME. NAME is an object with model and "
    "guide, a class or function that makes one without arguments, or a pair (model, guide). Both take the observations "
    "as x, and labels as y.",
)
@_objective("--beta", type=float, default=1.0, help="Weight of the KL; 1 is the ELBO.")
@_objective("--beta-warmup", type=_AT_LEAST_0, default=0, help="Epochs over which beta rises to its value.")
@_objective("--free-bits", type=float, default=0.0, help="Nats of each latent dimension's KL that are not penalised.")
@_objective("--num-particles", type=_AT_LEAST_1, default=1, help="Draws of z for each image in a step.")
@_objective(
    "--binarize",
    type=click.Choice(get_args(Binarize)),
    default="none",
    help="Make grey values 0 or 1: at one half, or drawn anew in each epoch with the value as probability.",
)
@_training("--epochs", type=_AT_LEAST_1, default=100, help="Passes over the training images.")
@_training("--batch-size", type=_AT_LEAST_1, default=256, help="Images in a step.")
@_training("--learning-rate", type=float, default=1e-3, help="Adam's step size.")
@_training(
    "--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Same seed, same weights; on the CPU bit for bit."
)
@_training("--cuda", is_flag=True, help="Train on a CUDA device; an error without one.")
@_training(
    "--patience", type=_AT_LEAST_0, default=0, help="End after this number of epochs without progress; 0 for never."
)
@_training(
    "--schedule",
    type=click.Choice(get_args(Schedule)),
    default="constant",
    help="Schedule of the learning rate; plateau halves it when the validation ELBO makes no progress.",
)
@_training("--plateau-epochs", type=_AT_LEAST_1, default=5, help="Epochs without progress; for plateau.")
@_training("--lr-warmup", type=_AT_LEAST_0, default=0, help="Epochs over which the learning rate rises to its value.")
@_training("--clip-norm", type=float, default=0.0, help="Largest norm of the gradient; 0 for any.")
@_training("--jit", is_flag=True, help="Compile the ELBO (Pyro's JitTrace_ELBO); not for mixture.")
@_training(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="fp32",
    help="Precision of matrix products in training; bf16 needs fast bfloat16 instructions.",
)
@_training("--tf32/--no-tf32", default=False, help="Allow TF32 in matrix products, for speed; with --cuda.")
@_output("--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/<data>-<choices>]")
@_output("--force", is_flag=True, help="Replace the run in --out.")
@_output("--resume", is_flag=True, help="Resume the run in --out, with its options; begin it if there is none.")
@_output("--dry-run", is_flag=True, help="Check everything, print what would be done, and end.")
@_output("--report/--no-report", default=True, help="Write report.html and its figures at the end.")
@_output(
    "--export-check/--no-export-check",
    default=True,
    help="Check first that networks or a program of your own can be exported.",
)
@_output("--checkpoint-every", type=_AT_LEAST_0, default=0, help="Steps between checkpoints; 0: one an epoch.")
@_output("--iw-particles", type=_AT_LEAST_0, default=0, help="Draws of z for the importance-weighted bound at the end.")
@_output("--tensorboard", is_flag=True, help="Log the run to TensorBoard, in its folder.")
@_output("--mlflow", is_flag=True, help="Log the run to MLflow.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_use_config,
    help="TOML file with options, like learning-rate = 1e-3; the command line takes precedence.",
)
@click.version_option(package_name="edgevae", prog_name="vae-train")
@click.pass_context
def main(ctx: click.Context, /, out: Path | None, force: bool, resume: bool, dry_run: bool, **options: Any) -> None:
    """Fit Pyro's VAE, or a Pyro program of your own, with SVI and save the run.

    The run is written to --out: configuration, checkpoints, weights, metrics, evaluation and report. Ctrl-C and SIGTERM
    end the training with a checkpoint. --resume continues from there, and after a crash, too.

    \b
    Examples:
      python -m train --dataset digits --epochs 50
      python -m train --cuda --dataset mnist --data-dir ~/mnist
      python -m train --architecture conv --latent hierarchical --z-dims 32,16
      python -m train --latent mixture --components 10 --binarize stochastic
      python -m train --data faces/ --resize 64,64 --architecture conv --validation-fraction 0.1 --patience 10
      python -m train --data sensors.npy --likelihood normal --z-dim 8
      python -m train --program my_models.py:MyVAE --dataset mnist --epochs 20
      python -m train --resume --out runs/mnist-mlp
      torchrun --nproc-per-node 4 --max-restarts 3 -m train --out runs/mnist --resume
    """
    _drop_default_dataset(ctx, options)
    out = out or Path("runs") / _default_name(options)
    if force and resume:
        raise click.UsageError("--force replaces a run and --resume continues it; give one of them")
    try:
        if resume and (out / CHECKPOINT_FILE).exists():
            options = _resumed(ctx, read_config(out), options)
            _drop_default_dataset(ctx, options)
        _check_usage(ctx, options)
        if options["program"] is None:
            check_options(options["architecture"], options["architecture_options"])
        with joined(options["cuda"]) as processes:
            stopped_by = _train(processes, out, force, resume, dry_run, **options)
    except FirstFailedError:
        ctx.exit(_RefusedError.exit_code)
    except (TrainError, OSError) as error:
        raise _RefusedError(f"{this_process()}{error}") from error
    if stopped_by:
        ctx.exit(_SIGNALLED + stopped_by)


def _train(processes: Processes, out: Path, force: bool, resume: bool, dry_run: bool, **options: Any) -> int:
    """Train as the options say; return the signal that ended it early, 0 for none."""
    say = click.echo if processes.is_first else _say_nothing
    training = TrainingConfig(**{name: options[name] for name in _TRAINING_OPTIONS})
    data = DataConfig(**{field.name: options[field.name] for field in dataclasses.fields(DataConfig)})
    loggers: list[Observer] = [TensorBoardLog()] if options["tensorboard"] else []
    loggers += [MlflowLog()] if options["mlflow"] else []
    if not (resume and (out / CHECKPOINT_FILE).exists()):
        processes.from_first(lambda: check_writable(out, overwrite=force))
    dataset = processes.first_then_others(lambda: _loaded(data, options["conditional"]))
    model = _model_of(dataset, training, options)
    say(_plan(dataset, model, training, processes, out))
    if processes.world_size > 1:
        say(f"processes {processes.world_size}, each with its part of every batch")
    where: dict[str, Any] = {"device": processes.device, "processes": processes, "overwrite": force, "resume": resume}
    where["export_check"] = options["export_check"]
    if dry_run:
        check_training(dataset, out, model, training, **where)
        say("Nothing was trained (--dry-run).")
        return 0
    with _stop_signal() as stopped_by, _progress(training, processes) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # it is printed below
        run = fit(
            dataset,
            out,
            model,
            training,
            **where,
            **{name: options[name] for name in ("checkpoint_every", "iw_particles", "report")},
            observers=[progress, *loggers],
            should_stop=lambda: stopped_by() != 0,
            command=_recorded(options),
        )
    stopped = processes.any(stopped_by() != 0)
    last = run.metrics[-1]
    if stopped:
        say(f"Stopped in epoch {last.epoch}; the checkpoint is saved. Go on with --resume.")
    elif last.epoch < training.epochs:
        say(f"Ended after epoch {last.epoch}: {training.patience} epochs brought no better validation ELBO.")
    elbo, num_particles = run.test_elbo
    one = "an image" if len(dataset.data_shape) == 3 else "a row"
    median = run.evaluations["test"].elbo_median_nats if "test" in run.evaluations else None
    said = f"Test ELBO {elbo:.2f} nats {one}" + ("" if median is None else f", median {median:.2f}")
    say(f"{said} ({num_particles} particles). Export it with: vae-export {out}")
    advice = collapse_advice(run.evaluations["test"], training, model) if "test" in run.evaluations else None
    if advice is not None and processes.is_first:
        click.secho(f"warning: {advice}", fg="yellow", err=True)
    return stopped_by() or (signal.SIGTERM if stopped else 0)


def _model_of(dataset: Dataset[Images], training: TrainingConfig, options: Mapping[str, Any]) -> AnyModelConfig:
    """Return the program that was given, or else the VAE that the options describe."""
    if options["program"] is not None:
        return program_for(dataset, training, options["program"], conditional=options["conditional"])
    choices = {name: options[name] for name in _MODEL_OPTIONS - {"program", "z_dims"}}
    z_dim, *upper_dims = options["z_dims"]
    return model_for(dataset, training, z_dim=z_dim, upper_dims=tuple(upper_dims), **choices)


def _say_nothing(_text: str) -> None:
    """Print nothing, in all processes but the first."""


def _progress(training: TrainingConfig, processes: Processes) -> contextlib.AbstractContextManager[Observer]:
    first = processes.is_first
    return (
        ProgressDisplay(training.epochs, training.batch_size, processes)
        if first
        else contextlib.nullcontext(Observer())
    )


def _loaded(data: DataConfig, conditional: bool) -> Dataset[Images]:
    """Return the data, with labels if there are any: the report always colours by them."""
    if conditional:
        return load_data(data, labels=True)
    try:
        return load_data(data, labels=True)
    except DatasetError:
        return load_data(data, labels=False)


def _check_usage(ctx: click.Context, options: Mapping[str, Any]) -> None:
    for name, (choice, value) in _REQUIRES.items():
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE and options[choice] != value:
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} goes with --{choice} {value}, got --{choice} {options[choice]}")
    if options["program"] is not None:
        for name in sorted(_MODEL_OPTIONS - _OF_ANY_MODEL):
            if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
                option = "z-dim" if name == "z_dims" else name.replace("_", "-").replace("options", "option")
                raise click.UsageError(
                    f"--{option} describes the VAE of edgevae, and --program trains {options['program']}, which says "
                    "itself what it is; give one of the two"
                )
    if options["tf32"] and not options["cuda"]:
        raise click.UsageError("--tf32 goes with --cuda: the CPU has no TF32")


def _drop_default_dataset(ctx: click.Context, options: dict[str, Any]) -> None:
    """Let own data take the place of the default data set."""
    if options["data"] is not None and ctx.get_parameter_source("dataset") is ParameterSource.DEFAULT:
        options["dataset"] = None


def _recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that belong to neither model nor training, in JSON's types, for `config.json`."""
    others = options.keys() - _TRAINING_OPTIONS - _MODEL_OPTIONS
    return {name: str(options[name]) if isinstance(options[name], Path) else options[name] for name in sorted(others)}


def _resumed(ctx: click.Context, config: RunConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the resumed run, unless the command line or --config says otherwise."""
    model = dataclasses.asdict(config.model)
    recorded = {**config.command, **dataclasses.asdict(config.training)}
    recorded |= {name: model[name] for name in _MODEL_OPTIONS & model.keys()}
    recorded["conditional"] = config.model.num_classes > 0
    if isinstance(config.model, ModelConfig):
        recorded["z_dims"] = config.model.z_dims
    merged = dict(options)
    for parameter in ctx.command.params:
        name = str(parameter.name)
        if name in recorded and ctx.get_parameter_source(name) is ParameterSource.DEFAULT:
            value = recorded[name]
            if isinstance(value, dict):  # of an option with a type of its own that may be given several times
                merged[name] = value
            else:
                merged[name] = parameter.type_cast_value(ctx, tuple(value) if isinstance(value, list) else value)
    return merged


def _default_name(options: Mapping[str, Any]) -> str:
    """Name a run by its data, its architecture, and its choices that are not the default."""
    usual = {"likelihood": "bernoulli", "latent": "normal", "binarize": "none"}
    parts = [options["data"].stem if options["data"] else options["dataset"]]
    if options["program"] is not None:
        parts.append(options["program"].rpartition(":")[2])
    else:
        parts += [Path(options["architecture"].rpartition(":")[0] or options["architecture"]).stem]
    parts += [options[name] for name, value in usual.items() if options[name] != value]
    parts += ["conditional"] * options["conditional"]
    parts += [f"beta{options['beta']:g}"] * (options["beta"] != 1)
    return "-".join(parts)


def _plan(
    dataset: Dataset[Images], model: AnyModelConfig, training: TrainingConfig, processes: Processes, out: Path
) -> str:
    """Return five lines: the data, the model, the training, the device and the run's folder."""
    sizes = processes.batches(len(dataset.train), training.batch_size)
    joined_last = sizes[-1] > training.batch_size
    last = f" ({sizes[-1]} in the last step: the rest would be too few for one of its own)" if joined_last else ""
    parts = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    counts = ", ".join(f"{len(images):,} {name}" for name, images in parts.items() if images is not None)
    what = "images" if len(dataset.data_shape) == 3 else "rows"
    state = ""
    if (out / CHECKPOINT_FILE).exists():
        notes = Checkpoint.read(out / CHECKPOINT_FILE).notes
        state = f" (there already: {notes['epoch']} of {training.epochs} epochs, {notes['steps']:,} steps made)"
    elif (out / WEIGHTS_FILE).exists():
        state = " (there already)"
    lines = {
        "data": f"{dataset.name}: {counts} {what}, shape {dataset.data_shape}",
        "model": _model_line(dataset, model),
        "training": f"{training.epochs} epochs of {len(sizes):,} steps, batch size {training.batch_size}{last}, "
        f"{_training_line(training)}",
        "device": str(processes.device),
        "run": f"{out}{state}",
    }
    return "\n".join(f"{name:<9} {line}" for name, line in lines.items())


def _model_line(dataset: Dataset[Images], config: AnyModelConfig) -> str:
    with forked_rng(torch.device("cpu")):
        model = make_model(config, example_rows(dataset, config))
    return f"{model.summary}; {sum(parameter.numel() for parameter in model.fitted()):,} parameters"


def _training_line(training: TrainingConfig) -> str:
    said = [f"Adam {training.learning_rate:g}"]
    said += [training.schedule] * (training.schedule != "constant")
    said += [f"warm-up {training.lr_warmup}"] * (training.lr_warmup > 0)
    said += [f"beta {training.beta:g}"] * (training.beta != 1)
    said += [f"beta warm-up {training.beta_warmup}"] * (training.beta_warmup > 0)
    said += [f"{training.num_particles} particles"] * (training.num_particles > 1)
    said += [f"free bits {training.free_bits:g}"] * (training.free_bits > 0)
    said += [f"gradient norm at most {training.clip_norm:g}"] * (training.clip_norm > 0)
    said += [f"patience {training.patience}"] * (training.patience > 0)
    said += [f"binarized: {training.binarize}"] * (training.binarize != "none")
    return ", ".join([*said, f"seed {training.seed}"])


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the signal received, 0 for none. A second Ctrl-C or SIGTERM ends the program."""
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
