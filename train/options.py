"""The options of `python -m train`, by what they choose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from .architectures import networks_of
from .config import MAX_SEED, Binarize, Precision, Schedule
from .data import DATASET_NAMES
from .errors import ConfigError
from .latents import LATENTS
from .likelihoods import LIKELIHOODS
from .networks import ARCHITECTURES
from .numbers import Numbers, Sizes

_Command = TypeVar("_Command", bound=Callable[..., Any])

_AT_LEAST_0, _AT_LEAST_1 = click.IntRange(min=0), click.IntRange(min=1)
_PATH = click.Path(exists=True, path_type=Path)
_FRACTION = click.FloatRange(0, 1, max_open=True)


def data_options(command: _Command) -> _Command:
    """Add what chooses the data: the fields of `DataConfig`."""
    return _all(
        command,
        click.option("--dataset", type=click.Choice(DATASET_NAMES), default="mnist", help="Known images to train on."),
        click.option(
            "--data-dir",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Folder with the data set's IDX files, plain or gzip. Without it they are downloaded to data/.",
        ),
        click.option(
            "--data",
            type=_PATH,
            help="Own data in the place of --dataset: .npy, .npz with x and y, IDX, or a folder of images.",
        ),
        click.option("--test-data", type=_PATH, help="Own test data; without them a part of --data is set aside."),
        click.option("--validation-data", type=_PATH, help="Own validation data; likewise."),
        click.option("--test-fraction", type=_FRACTION, default=0.1, help="Part of --data to test on."),
        click.option("--validation-fraction", type=_FRACTION, default=0.0, help="Part of the data to validate on."),
        click.option("--split-seed", type=_AT_LEAST_0, default=0, help="Seed of the parts."),
        click.option("--scale", type=Numbers("0,16", count=2), help="Values LOW,HIGH of own data that become 0 and 1."),
        click.option("--resize", type=Sizes("28,28", count=2), help="HEIGHT,WIDTH that image files are brought to."),
        click.option("--grey", is_flag=True, help="Make colour images grey."),
    )


def model_options(command: _Command) -> _Command:
    """Add what chooses the model: the fields of `ModelConfig`."""
    return _all(
        command,
        click.option(
            "--architecture",
            type=Architecture(),
            metavar="|".join([*ARCHITECTURES, "MODULE:ENCODER,DECODER"]),
            default="mlp",
            help="The networks; MODULE:ENCODER,DECODER are two classes of your own, in a module that can be imported.",
        ),
        click.option("--hidden-dim", type=_AT_LEAST_1, default=400, help="Width of the hidden layers."),
        click.option(
            "--z-dim",
            "--z-dims",
            "z_dims",
            type=Sizes("32,16"),
            default="50",
            help="Latent dimensions; with hierarchical one size a level, the lowest first, like 32,16.",
        ),
        click.option("--likelihood", type=click.Choice(list(LIKELIHOODS)), default="bernoulli", help="p(x|z)."),
        click.option(
            "--levels", type=click.IntRange(min=2), default=8, help="Values a pixel may have; with categorical."
        ),
        click.option("--latent", type=click.Choice(list(LATENTS)), default="normal", help="p(z)."),
        click.option("--components", type=click.IntRange(min=2), default=10, help="Components of p(z); with mixture."),
        click.option(
            "--conditional", is_flag=True, help="Both networks see the labels, and a chosen class can be generated."
        ),
    )


def training_options(command: _Command) -> _Command:
    """Add what chooses the training: the fields of `TrainingConfig`."""
    return _all(
        command,
        click.option("--epochs", type=_AT_LEAST_1, default=100, help="Passes over the training images."),
        click.option("--batch-size", type=_AT_LEAST_1, default=256, help="Images a step."),
        click.option("--learning-rate", type=float, default=1e-3, help="Adam's step size."),
        click.option(
            "--schedule",
            type=click.Choice(get_args(Schedule)),
            default="constant",
            help="Of the learning rate; plateau halves it when the validation ELBO stands still.",
        ),
        click.option("--lr-warmup", type=_AT_LEAST_0, default=0, help="Epochs in which the learning rate is reached."),
        click.option("--plateau-epochs", type=_AT_LEAST_1, default=5, help="Epochs of standstill; with plateau."),
        click.option("--patience", type=_AT_LEAST_0, default=0, help="Epochs of standstill that end the training."),
        click.option("--clip-norm", type=float, default=0.0, help="Largest norm of the gradient; 0 for any."),
        click.option("--free-bits", type=float, default=0.0, help="Nats of a dimension's KL that cost nothing."),
        click.option("--beta", type=float, default=1.0, help="Weight of the latent in the objective; 1 is the ELBO."),
        click.option("--beta-warmup", type=_AT_LEAST_0, default=0, help="Epochs over which beta is reached."),
        click.option("--num-particles", type=_AT_LEAST_1, default=1, help="Draws of z an image and step."),
        click.option(
            "--binarize",
            type=click.Choice(get_args(Binarize)),
            default="none",
            help="Grey values made 0 or 1: at one half, or drawn anew in each epoch, grey as probability.",
        ),
        click.option(
            "--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Same seed, same weights; on CPU bit for bit."
        ),
        click.option("--jit", is_flag=True, help="Compile the ELBO (Pyro's JitTrace_ELBO); not for a mixture."),
        click.option(
            "--precision",
            type=click.Choice(get_args(Precision)),
            default="fp32",
            help="Of products while fitting; bf16 where the processor has quick instructions for it.",
        ),
        click.option(
            "--tf32/--no-tf32", default=False, help="Let a CUDA device round factors to 10 bits; with --cuda."
        ),
    )


def run_options(command: _Command) -> _Command:
    """Add where the run goes, and what it leaves."""
    return _all(
        command,
        click.option(
            "--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/<data>-<choices>]"
        ),
        click.option("--force", is_flag=True, help="Replace the run that --out already holds."),
        click.option(
            "--resume", is_flag=True, help="Go on with the run that --out holds, with its options; begin it if none."
        ),
        click.option(
            "--checkpoint-every", type=_AT_LEAST_0, default=0, help="Steps between checkpoints; 0: at each epoch's end."
        ),
        click.option(
            "--iw-particles", type=_AT_LEAST_0, default=0, help="Draws of the importance-weighted bound, at the end."
        ),
        click.option("--report/--no-report", default=True, help="Draw report.html and its pictures at the end."),
        click.option("--tensorboard", is_flag=True, help="Write what TensorBoard shows to the run's folder."),
        click.option("--mlflow", is_flag=True, help="Log the run to MLflow."),
        click.option("--dry-run", is_flag=True, help="Say what would be done, and end."),
    )


class Architecture(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """The name of an architecture, or networks of one's own, like `networks:TanhEncoder,TanhDecoder`."""

    name = "architecture"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, if there are such networks."""
        try:
            networks_of(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return value


def _all(command: _Command, *options: Callable[[_Command], _Command]) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command
