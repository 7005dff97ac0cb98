"""Pictures of data that are images."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .drawing import FIGURE_WIDTH, new_axes, new_figure
from .generation import Samples, Traversals
from .tiles import Shades, Tiles

COLUMNS = 12
_PAIR = 2
_LETTER_WIDTH, _MARGIN, _TITLE_HEIGHT, _AXIS_HEIGHT = 0.072, 0.1, 0.3, 0.4  # inches
_LONGEST = 24  # letters of a name


def reconstructions_figure(x: Tensor, loc_img: Tensor, shades: Shades) -> Figure:
    """Draw rows of images, each above its reconstructions.

    Args:
        x: Images, shape `(count, *data_shape)`.
        loc_img: Their reconstructions, shape `(count, data_dim)`.
        shades: What is black and white.
    """
    rows = [_rows(shades(values.reshape(x.shape).cpu())) for values in (x, loc_img)]
    tiles = Tiles(torch.stack(rows, dim=1).flatten(0, 1), group=_PAIR)
    return _drawn(tiles, ["test images", "reconstructed"] * len(rows[0]), "Test images above their reconstructions")


def samples_figure(samples: Samples, data_shape: tuple[int, ...], shades: Shades) -> Figure:
    """Draw samples of the prior, the mean of p(x|z) of each."""
    tiles = Tiles(shades(samples.loc_img.unflatten(-1, data_shape)))
    return _drawn(tiles, list(samples.names), "Samples of the prior")


def traversals_figure(traversals: Traversals, data_shape: tuple[int, ...], shades: Shades) -> Figure:
    """Draw a row of images for each dimension that is moved."""
    tiles = Tiles(shades(traversals.loc_img.unflatten(-1, data_shape)))
    names = [f"z[{dimension}]" for dimension in traversals.dimensions]
    figure = _drawn(tiles, names, "One dimension moved, the others those of the first test image", _AXIS_HEIGHT)
    (axes,) = figure.axes
    at = zip(tiles.column_centres, traversals.steps.tolist(), strict=True)
    whole = {centre: f"{round(step)}".replace("-", "−") for centre, step in at if abs(step - round(step)) < 1e-3}
    axes.set_xticks(list(whole), list(whole.values()))
    axes.set_xlabel("z_loc (σ from its mean over the test images)")
    return figure


def _drawn(tiles: Tiles, names: list[str], title: str, below: float = 0.0) -> Figure:
    """Draw tiles with a name beside each row, and `below` inches left for an axis."""
    height, width, _ = tiles.pixels.shape
    names = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    left = _LETTER_WIDTH * max(map(len, names), default=0) + _MARGIN
    across = FIGURE_WIDTH - left - _MARGIN
    high = across * height / width
    figure = new_figure(high + _TITLE_HEIGHT + below + _MARGIN)
    figure.set_layout_engine("none")
    (axes,) = new_axes(figure)
    total = figure.get_figheight()
    axes.set_position((left / FIGURE_WIDTH, (below + _MARGIN) / total, across / FIGURE_WIDTH, high / total))
    axes.imshow(tiles.pixels, interpolation="nearest")
    axes.set(title=title, xticks=[])
    axes.set_yticks(tiles.row_centres if names else [], names)
    _bare(axes)
    return figure


def _bare(axes: Axes) -> None:
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _rows(images: Tensor) -> Tensor:
    """Arrange `(count, ...)` as `(rows, columns, ...)`, the last row filled with white."""
    columns = min(COLUMNS, len(images))
    missing = -len(images) % columns
    padded = torch.cat([images, images.new_ones((missing, *images.shape[1:]))])
    return padded.reshape(-1, columns, *images.shape[1:])
