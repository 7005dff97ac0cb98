"""Pictures of data that are no images: features by number."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from .drawing import BLUE, GREY, ORANGE, new_axes, new_figure
from .generation import Samples, Traversals

_SHOWN = 9
_SHOWN_IN_MAPS = 20
_COLUMNS = 3
_BINS = 30

Floats = NDArray[np.float64]


def reconstructions_figure(x: Tensor, loc_img: Tensor) -> Figure:
    """Draw features against their reconstructions, those that vary most.

    Args:
        x: Observations, shape `(count, ...)`.
        loc_img: Their reconstructions, shape `(count, data_dim)`.
    """
    true, found = _floats(x), _floats(loc_img)
    shown = _most_varied(true, _SHOWN)
    figure, panels = _panels(len(shown))
    for axes, feature in zip(panels, shown, strict=False):
        low, high = true[:, feature].min(), true[:, feature].max()
        axes.plot([low, high], [low, high], color=GREY, linewidth=1)
        axes.scatter(true[:, feature], found[:, feature], s=5, color=BLUE, alpha=0.5, linewidths=0)
        axes.set_title(f"x[{feature}], {_explained(true[:, feature], found[:, feature])}")
    figure.supxlabel("test data", fontsize=9)
    figure.supylabel("reconstructed: mean of p(x|z)", fontsize=9)
    return figure


def samples_figure(x: Tensor, samples: Samples) -> Figure:
    """Draw how features are distributed in the data, and in draws of the model."""
    true, drawn = _floats(x), _floats(samples.drawn.flatten(0, 1))
    shown = _most_varied(true, _SHOWN)
    figure, panels = _panels(len(shown))
    for axes, feature in zip(panels, shown, strict=False):
        both = np.concatenate([true[:, feature], drawn[:, feature]])
        edges = np.histogram_bin_edges(both, _BINS).tolist()
        axes.hist(true[:, feature], edges, density=True, color=GREY, alpha=0.45, label="test data")
        axes.hist(drawn[:, feature], edges, density=True, histtype="step", color=ORANGE, linewidth=1.6, label="model")
        axes.set_title(f"x[{feature}]")
        axes.set_yticks([])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.supxlabel("value", fontsize=9)
    figure.supylabel("density", fontsize=9)
    return figure


def traversals_figure(x: Tensor, traversals: Traversals) -> Figure:
    """Draw how far features move from the data's mean, in the data's standard deviations, along each dimension."""
    true = _floats(x)
    shown = np.sort(_most_varied(true, _SHOWN_IN_MAPS))
    spread = np.where(true.std(0) > 0, true.std(0), 1)
    moved = (traversals.loc_img.double().numpy() - true.mean(0)) / spread
    largest = max(float(np.abs(moved[..., shown]).max()), 1e-6)
    figure, panels = _panels(len(traversals.dimensions), row_height=max(1.8, 0.14 * len(shown) + 0.6))
    first, last = float(traversals.steps[0]), float(traversals.steps[-1])
    half = (last - first) / (len(traversals.steps) - 1) / 2
    extent = (first - half, last + half, len(shown) - 0.5, -0.5)
    for index, (axes, dimension) in enumerate(zip(panels, traversals.dimensions, strict=False)):
        image = axes.imshow(
            moved[index][:, shown].T, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto", extent=extent
        )
        axes.set_title(f"z[{dimension}]")
        names = [f"x[{feature}]" for feature in shown] if index % _COLUMNS == 0 else []
        axes.set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(image, ax=panels, label="feature (σ from its mean)", fraction=0.05)
    figure.supxlabel("z_loc (σ from its mean over the test data)", fontsize=9)
    return figure


def _panels(count: int, row_height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """A figure with as many axes as are needed."""
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = new_figure(rows * row_height + 0.4)
    axes = new_axes(figure, rows, columns)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _floats(values: Tensor) -> Floats:
    return values.cpu().flatten(1).double().numpy()


def _most_varied(values: Floats, count: int) -> NDArray[np.intp]:
    """The features of the largest variance, the largest first."""
    return np.argsort(-values.var(0), kind="stable")[:count]


def _explained(true: Floats, found: Floats) -> str:
    """R², the part of the variance that the reconstruction explains."""
    variance = float(true.var())
    return f"R² = {1 - float(np.mean((true - found) ** 2)) / variance:.2f}" if variance > 0 else "constant"
