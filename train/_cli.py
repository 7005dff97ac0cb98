"""`python -m train`, also installed as `vae-train`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch

from train._config import MAX_SEED, ModelConfig, TrainingConfig
from train._datasets import DATASET_NAMES, DatasetName, load_dataset
from train._device import select_device
from train._errors import TrainError
from train._fit import fit
from train._likelihoods import LIKELIHOODS
from train._networks import ARCHITECTURES
from train._progress import show_progress
from train._run import DatasetInfo, RunWriter, check_writable, run_config
from train._trainer import Trainer

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
@click.option("--z-dim", type=click.IntRange(min=1), default=50, help="Latent dimensions.")
@click.option("--hidden-dim", type=click.IntRange(min=1), default=400, help="Width of the hidden layers.")
@click.option(
    "--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Same seed, same weights; on CPU bit for bit."
)
@click.option("--architecture", type=click.Choice(list(ARCHITECTURES)), default="mlp", help="The networks.")
@click.option("--likelihood", type=click.Choice(list(LIKELIHOODS)), default="bernoulli", help="p(x|z).")
@click.option("--levels", type=click.IntRange(min=2), default=8, help="Values a pixel may have; with categorical.")
@click.option("--beta", type=float, default=1.0, help="Weight of the latent in the objective; 1 is the ELBO.")
@click.option("--beta-warmup", type=click.IntRange(min=0), default=0, help="Epochs over which beta is reached.")
@click.option("--num-particles", type=click.IntRange(min=1), default=1, help="Draws of z an image and step.")
@click.option("--jit", is_flag=True, help="Compile the ELBO (Pyro's JitTrace_ELBO).")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/<dataset>-<architecture>]"
)
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
    """
    out = out or Path("runs") / f"{options['dataset']}-{options['architecture']}"
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
    z_dim: int,
    hidden_dim: int,
    architecture: str,
    likelihood: str,
    levels: int,
    **training: Any,
) -> bool:
    device = select_device(cuda)
    training_config = TrainingConfig(**training)
    check_writable(out, overwrite=force)
    images = load_dataset(dataset, data_dir)
    model_config = ModelConfig(images.data_shape, z_dim, hidden_dim, architecture, likelihood, levels)
    if not LIKELIHOODS[likelihood].unit_interval:
        data_scale, data_loc = torch.std_mean(images.train)
        model_config = dataclasses.replace(model_config, data_loc=float(data_loc), data_scale=float(data_scale))
    info = DatasetInfo(images.name, len(images.train), len(images.test))
    click.echo(
        f"{info.name}: {info.num_train} training and {info.num_test} test images, shape {images.data_shape}; "
        f"{architecture} VAE {model_config.data_dim}-{hidden_dim}-{z_dim}, {likelihood}, on {device}; run in {out}"
    )
    trainer = Trainer(model_config, training_config, device)
    writer = RunWriter(out, run_config(model_config, training_config, info), images.test, overwrite=force)
    steps_per_epoch = math.ceil(info.num_train / training_config.batch_size)
    with _interrupt_flag() as interrupted, show_progress(training_config.epochs, steps_per_epoch) as progress:
        last = fit(trainer, images.to(device), training_config.epochs, writer, progress, should_stop=interrupted)
    if interrupted():
        click.echo(f"Interrupted in epoch {last.epoch}; the checkpoint is saved.")
    click.echo(f"Test ELBO {last.test_elbo_nats:.2f} nats an image. Export it with: vae-export {out}")
    return not interrupted()


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
