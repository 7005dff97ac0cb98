"""Pictures of the latent space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from ..evaluation import Evaluation
from .drawing import BLUE, CLASS_COLOURS, new_axes, new_figure
from .generation import spread_out

_SEED = 0
_PERPLEXITY = 30.0
_MOST_NEIGHBOURS = 1000  # points; twice as many take twice as long
_FEWEST = 10  # points, from which neighbours say something
_MOST_NAMED = 60  # bars that have room for their dimension's number
_MOST_IN_LEGEND = 20
_LETTER_WIDTH, _LETTER_HEIGHT = 0.028, 0.06  # of the axes

Floats = NDArray[np.float64]


def kl_figure(evaluation: Evaluation) -> Figure:
    """Draw the KL of each dimension, the largest first."""
    kl = np.asarray(evaluation.kl_per_dim_nats)
    order = np.argsort(-kl, kind="stable")
    figure = new_figure(2.8)
    (axes,) = new_axes(figure)
    axes.bar(range(len(kl)), kl[order], color=BLUE, width=0.8)
    axes.set(xlabel="dimension of z, the largest KL first", ylabel="KL (nats an image)", xlim=(-0.6, len(kl) - 0.4))
    axes.set_title(f"KL a dimension; {evaluation.active_units} of {len(kl)} units are active")
    if len(kl) <= _MOST_NAMED:
        axes.set_xticks(range(len(kl)), [str(dimension) for dimension in order], fontsize=7 if len(kl) > 30 else 8)
    axes.grid(visible=True, axis="y")
    axes.axhline(0, color="#555555", linewidth=0.8)
    return figure


def map_figure(z_loc: Tensor, labels: Tensor | None, class_names: Sequence[str] = ()) -> Figure:
    """Draw where observations lie in the latent space: in the plane where they vary most, and by t-SNE.

    Args:
        z_loc: Means of q(z|x), shape `(count, z_dim)`.
        labels: Their classes, shape `(count,)`, for the colours.
        class_names: Names of the classes; without them their numbers.
    """
    values = z_loc.double().numpy()
    classes = np.zeros(len(values), int) if labels is None else labels.cpu().numpy()
    names = _names(labels, class_names)
    some = spread_out(len(values), _MOST_NEIGHBOURS).numpy()
    neighbours = _neighbours(values[some])
    figure = new_figure(4.2 if neighbours is not None else 5.0)
    axes = new_axes(figure, columns=1 if neighbours is None else 2)
    _draw_plane(axes[0], values, classes, names)
    if neighbours is not None:
        _scatter(axes[1], neighbours, classes[some], names)
        axes[1].set(title="t-SNE of z_loc", xlabel="no units: only neighbourhoods count", xticks=[], yticks=[])
    if 0 < len(names) <= _MOST_IN_LEGEND:
        handles, found = axes[0].get_legend_handles_labels()
        figure.legend(handles, found, loc="outside lower center", ncols=10, markerscale=3, handletextpad=0.1)
    return figure


def _draw_plane(axes: Axes, values: Floats, classes: NDArray[np.intp], names: dict[int, str]) -> None:
    if values.shape[1] == 1:
        index = np.arange(len(values), dtype=np.float64)
        _scatter(axes, np.stack([values[:, 0], index], axis=1), classes, names)
        axes.set(title="z_loc", xlabel="z_loc[0]", ylabel="observation")
    elif values.shape[1] == 2:
        _scatter(axes, values, classes, names)
        axes.set(title="z_loc", xlabel="z_loc[0]", ylabel="z_loc[1]")
    else:
        plane, parts = _principal_components(values)
        _scatter(axes, plane, classes, names)
        axes.set(title="PCA of z_loc")
        axes.set_xlabel(f"1st component ({parts[0]:.0%} of the variance)")
        axes.set_ylabel(f"2nd component ({parts[1]:.0%})")


def _scatter(axes: Axes, points: Floats, classes: NDArray[np.intp], names: dict[int, str]) -> None:
    """Draw points, those of a class in its colour."""
    if not names:
        axes.scatter(points[:, 0], points[:, 1], s=5, color=BLUE, alpha=0.6, linewidths=0)
        return
    colours = _colours(len(names))
    for (label, name), colour in zip(names.items(), colours, strict=True):
        mine = points[classes == label]
        axes.scatter(mine[:, 0], mine[:, 1], s=5, color=colour, alpha=0.7, linewidths=0, label=name)
    _name_classes(axes, points, classes, names, colours)


def _name_classes(
    axes: Axes, points: Floats, classes: NDArray[np.intp], names: dict[int, str], colours: list[str]
) -> None:
    """Write the name of each class over its middle, of those that would overlap the first."""
    room = np.array([_LETTER_WIDTH, _LETTER_HEIGHT]) * np.maximum(np.ptp(points, axis=0), np.finfo(np.float64).tiny)
    taken: list[tuple[Floats, int]] = []
    for (label, name), colour in zip(names.items(), colours, strict=True):
        middle = np.median(points[classes == label], axis=0)
        apart = ((np.abs(middle - other) / room, (len(name) + length) / 2) for other, length in taken)
        if all(across > letters or up > 1 for (across, up), letters in apart):
            halo = [withStroke(linewidth=2.5, foreground="white")]
            axes.text(
                float(middle[0]),
                float(middle[1]),
                name,
                color=colour,
                weight="bold",
                ha="center",
                va="center",
                path_effects=halo,
            )
            taken.append((middle, len(name)))


def _names(labels: Tensor | None, class_names: Sequence[str]) -> dict[int, str]:
    """The classes that there are, and what they are called."""
    if labels is None:
        return {}
    return {label: class_names[label] if class_names else str(label) for label in labels.unique().tolist()}


def _colours(count: int) -> list[str]:
    if count <= len(CLASS_COLOURS):
        return list(CLASS_COLOURS[:count])
    return [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 0.92, count))]


def _principal_components(values: Floats) -> tuple[Floats, Floats]:
    """The two directions of the largest variance, and the part of the variance that each has."""
    centred = values - values.mean(0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])  # a direction has no sign of its own
    total = max(float((sizes**2).sum()), np.finfo(np.float64).tiny)
    plane = np.zeros((len(values), 2))
    parts = np.zeros(2)
    found = min(2, len(sizes))
    plane[:, :found] = (left * sizes * signs)[:, :found]
    parts[:found] = (sizes**2 / total)[:found]
    return plane, parts


def _neighbours(values: Floats) -> Floats | None:
    """The points by t-SNE (van der Maaten & Hinton, 2008); `None` where they lie in a plane already, or are too few."""
    if len(values) < _FEWEST or values.shape[1] <= 2 or float(values.var(0).max()) < 1e-12:
        return None
    from sklearn.manifold import TSNE  # scikit-learn takes a second to import

    perplexity = min(_PERPLEXITY, (len(values) - 1) / 3)
    points: Floats = TSNE(random_state=_SEED, perplexity=perplexity, init="pca").fit_transform(values)
    return points
