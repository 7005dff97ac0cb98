"""`python -m train`, also installed as `vae-train`."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import click
import torch
from click.core import ParameterSource

from train._binarize import binarize_once
from train._config import MAX_SEED, Binarize, ModelConfig, TrainingConfig
from train._datasets import DATASET_NAMES, DatasetName, load_dataset
from train._device import select_device
from train._errors import TrainError
from train._fit import fit
from train._latents import LATENTS
from train._likelihoods import LIKELIHOODS
from train._networks import ARCHITECTURES
from train._progress import show_progress
from train._run import DatasetInfo, RunWriter, check_writable, run_config
from train._sizes import Sizes
from train._trainer import Trainer

_GOES_WITH = {"levels": ("likelihood", "categorical"), "components": ("latent", "mixture")}
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class _Refused(click.ClickException):
    exit_code = 2


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--cuda", is_flag=True, help="Train on the CUDA device; an error where there is none.")
@click.option("--dataset", type=click.Choice(DATASET_NAMES), default="mnist", help="The images to train on.")
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the data set's IDX files, plain or gzip. Without it they are downloaded to data/.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=100, help="Passes over the training images.")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, help="Images a step.")
@click.option("--learning-rate", type=float, default=1e-3, help="Adam's step size.")
@click.option(
    "--z-dim",
    "--z-dims",
    "z_dims",
    type=Sizes("32,16"),
    default="50",
    help="Latent dimensions; with hierarchical one size a level, the lowest first, like 32,16.",
)
@click.option("--hidden-dim", type=click.IntRange(min=1), default=400, help="Width of the hidden layers.")
@click.option(
    "--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Same seed, same weights; on CPU bit for bit."
)
@click.option("--architecture", type=click.Choice(list(ARCHITECTURES)), default="mlp", help="The networks.")
@click.option("--likelihood", type=click.Choice(list(LIKELIHOODS)), default="bernoulli", help="p(x|z).")
@click.option("--levels", type=click.IntRange(min=2), default=8, help="Values a pixel may have; with categorical.")
@click.option("--latent", type=click.Choice(list(LATENTS)), default="normal", help="p(z).")
@click.option("--components", type=click.IntRange(min=2), default=10, help="Components of p(z); with mixture.")
@click.option("--conditional", is_flag=True, help="Both networks see the labels, and a chosen class can be generated.")
@click.option("--beta", type=float, default=1.0, help="Weight of the latent in the objective; 1 is the ELBO.")
@click.option("--beta-warmup", type=click.IntRange(min=0), default=0, help="Epochs over which beta is reached.")
@click.option("--num-particles", type=click.IntRange(min=1), default=1, help="Draws of z an image and step.")
@click.option(
    "--binarize",
    type=click.Choice(get_args(Binarize)),
    default="none",
    help="Grey values made 0 or 1: at one half, or drawn anew in each epoch with the grey value as probability.",
)
@click.option("--jit", is_flag=True, help="Compile the ELBO (Pyro's JitTrace_ELBO); not for a mixture.")
@click.option("--tf32/--no-tf32", default=False, help="Let a CUDA device round factors to 10 bits; with --cuda.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/<dataset>-<choices>]")
@click.option("--force", is_flag=True, help="Replace the run that --out already holds.")
@click.version_option(package_name="edgevae", prog_name="vae-train")
@click.pass_context
def main(ctx: click.Context, /, out: Path | None, force: bool, **options: Any) -> None:
    """Fit Pyro's VAE to images with SVI and save the run.

    The run goes to --out: configuration, weights, metrics, a loss curve and reconstructions. Ctrl-C ends the training
    with a checkpoint of that moment.

    \b
    Examples:
      python -m train --dataset digits --epochs 50
      python -m train --cuda --dataset mnist --data-dir ~/mnist
      python -m train --architecture conv --latent hierarchical --z-dims 32,16
      python -m train --latent mixture --components 10 --binarize stochastic
    """
    for name, (choice, value) in _GOES_WITH.items():
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE and options[choice] != value:
            raise click.UsageError(f"--{name} goes with --{choice} {value}, got --{choice} {options[choice]}")
    if options["tf32"] and not options["cuda"]:
        raise click.UsageError("--tf32 goes with --cuda: the CPU has no TF32")
    out = out or Path("runs") / _default_name(options)
    try:
        complete = _train(out, force, **options)
    except (TrainError, OSError) as error:
        raise _Refused(str(error)) from error
    if not complete:
        ctx.exit(_INTERRUPTED)


def _train(
    out: Path,
    force: bool,
    *,
    cuda: bool,
    dataset: DatasetName,
    data_dir: Path | None,
    z_dims: tuple[int, ...],
    conditional: bool,
    **choices: Any,
) -> bool:
    device = select_device(cuda)
    training_config = TrainingConfig(**{field.name: choices.pop(field.name) for field in fields(TrainingConfig)})
    check_writable(out, overwrite=force)
    images = load_dataset(dataset, data_dir, labels=conditional)
    model_config = ModelConfig(
        images.data_shape, z_dim=z_dims[0], upper_dims=z_dims[1:], num_classes=images.num_classes, **choices
    )
    if not LIKELIHOODS[model_config.likelihood].unit_interval:
        data_scale, data_loc = torch.std_mean(binarize_once(images.train, training_config.binarize))
        model_config = replace(model_config, data_loc=float(data_loc), data_scale=float(data_scale))
    info = DatasetInfo(images.name, len(images.train), len(images.test))
    click.echo(
        f"{info.name}: {info.num_train} training and {info.num_test} test images, shape {images.data_shape}; "
        f"{_described(model_config)}, on {device}; run in {out}"
    )
    trainer = Trainer(model_config, training_config, device)
    config = run_config(model_config, training_config, info)
    writer = RunWriter(out, config, images.test, images.test_labels, overwrite=force)
    steps_per_epoch = math.ceil(info.num_train / training_config.batch_size)
    with _interrupt_flag() as interrupted, show_progress(training_config.epochs, steps_per_epoch) as progress:
        last = fit(trainer, images.to(device), training_config.epochs, writer, progress, should_stop=interrupted)
    if interrupted():
        click.echo(f"Interrupted in epoch {last.epoch}; the checkpoint is saved.")
    click.echo(f"Test ELBO {last.test_elbo_nats:.2f} nats an image. Export it with: vae-export {out}")
    return not interrupted()


def _default_name(options: Mapping[str, Any]) -> str:
    """Name a run by its data, its architecture, and what it has that the reference has not."""
    usual = {"likelihood": "bernoulli", "latent": "normal", "binarize": "none"}
    parts = [options["dataset"], options["architecture"]]
    parts += [options[name] for name, value in usual.items() if options[name] != value]
    parts += ["conditional"] * options["conditional"]
    parts += [f"beta{options['beta']:g}"] * (options["beta"] != 1)
    return "-".join(parts)


def _described(model: ModelConfig) -> str:
    sizes = "-".join(map(str, (model.data_dim, model.hidden_dim, *model.z_dims)))
    latent = f"mixture of {model.components}" if model.latent == "mixture" else f"{model.latent} latent"
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    return f"{model.architecture} VAE {sizes}, {model.likelihood}, {latent}{classes}"


@contextlib.contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag that is asked between steps; a second one ends the program at once."""
    pressed = False

    def on_interrupt(_signum: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)
