"""Seconds an epoch, beside Pyro's way: a DataLoader over single images and `svi.step`.

    python -m benchmarks.training --dataset mnist --data-dir ~/mnist

The two are timed in turn, in one process, on the same images and the same network; what is compared is the median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import pyro
import torch
from PIL import Image
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]  # Pyro makes its optimizers at import
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from train import DATASET_NAMES, VAE, DatasetName, ModelConfig, Trainer, TrainingConfig, load_dataset

_BATCH_SIZE = 256


class _SingleImages(Dataset[Tensor]):
    """Images one by one, as torchvision's MNIST gives them: each made a PIL image, and that a tensor."""

    def __init__(self, images: Tensor) -> None:
        self._pixels = (images[:, 0] * 255).round().to(torch.uint8)
        self._to_tensor = ToTensor()

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self._to_tensor(Image.fromarray(self._pixels[index].numpy()))
        return image


def pyros_way(images: Tensor, model_config: ModelConfig) -> Callable[[], float]:
    """Return a function that trains an epoch as Pyro's example does; it returns the mean loss, nats an image."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    vae = VAE(model_config)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO())
    loader = DataLoader(_SingleImages(images), _BATCH_SIZE, shuffle=True, num_workers=1)
    return lambda: sum(svi.step(batch) for batch in loader) / len(images)


def our_way(images: Tensor, model_config: ModelConfig) -> Callable[[], float]:
    """Return a function that trains an epoch with `Trainer`; it returns the mean loss, nats an image."""
    trainer = Trainer(model_config, TrainingConfig(batch_size=_BATCH_SIZE), torch.device("cpu"))
    return lambda: trainer.fit_epoch(images)


@click.command(context_settings={"show_default": True})
@click.option("--dataset", type=click.Choice(DATASET_NAMES), default="digits", help="The images to train on.")
@click.option("--data-dir", type=click.Path(exists=True, path_type=Path), help="Folder with the IDX files.")
@click.option("--epochs", type=click.IntRange(min=1), default=5, help="Epochs of each, after one to warm up.")
def main(dataset: DatasetName, data_dir: Path | None, epochs: int) -> None:
    """Print the seconds an epoch of both ways, and their ratio."""
    images = load_dataset(dataset, data_dir).train
    model_config = ModelConfig(tuple(images.shape[1:]))
    ways = {"Pyro's way": pyros_way(images, model_config), "python -m train": our_way(images, model_config)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, float] = {}
    for epoch in range(epochs + 1):
        for name, fit_epoch in ways.items():
            start = time.perf_counter()
            losses[name] = fit_epoch()
            if epoch > 0:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    click.echo(f"{dataset}, {len(images)} images, {torch.get_num_threads()} threads, median of {epochs} epochs")
    for name, median in medians.items():
        ratio = median / medians["Pyro's way"]
        click.echo(
            f"{name:16} {median:7.2f} s  ratio {ratio:.2f}  loss after {epochs + 1} epochs {losses[name]:.2f} nats"
        )


if __name__ == "__main__":
    main()
