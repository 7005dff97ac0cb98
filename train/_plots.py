"""The pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from train._run import EpochMetrics

_COLUMNS = 12
_GAP = 0.4  # grey between the images


def save_loss_curve(path: Path, metrics: Sequence[EpochMetrics]) -> None:
    """Draw training and test loss by epoch, nats an image, as PNG."""
    epochs = [line.epoch for line in metrics]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    marker = "o" if len(epochs) == 1 else None
    axes.plot(epochs, [line.train_loss_nats for line in metrics], label="training", marker=marker)
    axes.plot(epochs, [-line.test_elbo_nats for line in metrics], label="test", marker=marker)
    axes.set(xlabel="epoch", ylabel="loss = -ELBO (nats an image)", title="Loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def save_reconstructions(path: Path, images: Tensor, loc_img: Tensor) -> None:
    """Draw each row of images above its reconstructions, as PNG; nothing where observations are no pictures.

    Args:
        path: The file.
        images: Shape `(num_images, width)`, `(num_images, height, width)`, or, with 1 or 3 channels,
            `(num_images, channels, height, width)`.
        loc_img: Their reconstructions, shape `(num_images, data_dim)`.
    """
    data_shape = images.shape[1:]
    if len(data_shape) > 3 or (len(data_shape) == 3 and data_shape[0] not in {1, 3}):
        return
    shape = (1,) * (3 - len(data_shape)) + tuple(data_shape)
    low, high = min(0.0, float(images.min())), max(1.0, float(images.max()))  # what lies outside is shown as these
    shown = [((values.reshape(-1, *shape) - low) / (high - low)).clamp(0, 1) for values in (images, loc_img)]
    tiles = torch.stack([_rows(values) for values in shown], dim=1).flatten(0, 1)  # a row of each in turn
    tiles = nn.functional.pad(tiles, (0, 1, 0, 1), value=_GAP)
    rows, columns, channels, height, width = tiles.shape
    picture = tiles.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    figure = Figure(figsize=(columns * 0.7, rows * 0.7 + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(title="Test images, each row above its reconstructions", xticks=[], yticks=[])
    figure.savefig(path, dpi=120)


def _rows(images: Tensor) -> Tensor:
    """Arrange `(num_images, ...)` as `(rows, columns, ...)`, the last row filled with black."""
    missing = -len(images) % _COLUMNS
    padded = torch.cat([images, images.new_zeros((missing, *images.shape[1:]))])
    return padded.reshape(-1, _COLUMNS, *images.shape[1:])
