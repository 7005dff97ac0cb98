"""The figures of a report: curves, the latent space, grids of images, and plots of features.

Each function returns a matplotlib figure; `styled` gives them the report's style and `png_of` renders one.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from ..evaluation import Evaluation
from .generation import Samples, Traversals, evenly_spaced

if TYPE_CHECKING:
    from ..run import EpochMetrics

DPI = 160
GRID_COLUMNS = 12
"""Images in a row of a grid."""

FEATURES_SHOWN = 9
"""Largest number of features that are plotted, for data that are not images."""

_FIGURE_WIDTH = 8.0  # inches; all figures are as wide as the page
_STYLE: Any = {  # Any: older matplotlib types its options as plain str
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "white",
}

# Okabe & Ito (2008): safe for colour-blind readers.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
# Paul Tol's "muted" scheme, for up to ten classes; more take a continuous colour map.
_CLASS_COLOURS = (
    *("#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677"),
    *("#AA4499", "#44AA99", "#999933", "#882255", "#8C8C8C"),
)

_MARKER_EPOCHS = 12  # up to this number, each epoch has a marker
_ZOOM_EPOCHS = 8  # from this number on, a second plot shows the later epochs

_MAX_TICK_LABELS = 60  # more bars have no room for labels
_MAX_LEGEND_CLASSES = 20
_LETTER_SIZE = np.array([0.028, 0.06])  # width and height, as fractions of the axes

_TSNE_SEED = 0
_TSNE_PERPLEXITY = 30.0
_TSNE_MIN_POINTS, _TSNE_MAX_POINTS = 10, 1000

_FEATURES_IN_MAP = 20
_PANEL_COLUMNS = 3
_HISTOGRAM_BINS = 30

_MIN_TILE = 56  # pixels; smaller images are enlarged by a whole factor
_TILE_GAP, _GROUP_GAP = 2, 12  # pixels
_LABEL_LETTER, _MARGIN, _TITLE_HEIGHT, _AXIS_HEIGHT = 0.072, 0.1, 0.3, 0.4  # inches
_MAX_LABEL = 24  # letters

Floats = NDArray[np.float64]


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Use the report's style in the body; matplotlib's settings are restored afterwards."""
    with rc_context(_STYLE):
        yield


def png_of(figure: Figure) -> bytes:
    """Return the figure as a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def _new_figure(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure `height` inches high, and its axes row by row."""
    figure = Figure(figsize=(_FIGURE_WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


# The training: curves by epoch.


def loss_figure(metrics: Sequence[EpochMetrics]) -> Figure:
    """Plot the losses by epoch, in nats an observation; after a long training, the later epochs in a second plot."""
    late = [line for line in metrics if line.epoch > metrics[-1].epoch // 4]
    zoomed = len(metrics) >= _ZOOM_EPOCHS and len(late) > 1
    figure, axes = _new_figure(3.4, columns=2 if zoomed else 1)
    marker = _marker(metrics)
    _plot_losses(axes[0], metrics, marker)
    axes[0].set(title="Loss", ylabel="loss = −ELBO (nats)")
    axes[0].legend()
    if zoomed:
        _plot_losses(axes[1], late, marker)
        axes[1].set(title=f"From epoch {late[0].epoch}")
    return figure


def schedule_figure(metrics: Sequence[EpochMetrics]) -> Figure | None:
    """Plot learning rate and beta by epoch; `None` if neither changed."""
    curves = {
        "learning rate": _points(metrics, lambda line: line.learning_rate),
        "beta": _points(metrics, lambda line: line.beta),
    }
    changed = {name: points for name, points in curves.items() if len({value for _, value in points}) > 1}
    if not changed:
        return None
    figure, panels = _new_figure(2.6, columns=len(changed))
    for axes, (name, points) in zip(panels, changed.items(), strict=True):
        axes.plot(*zip(*points, strict=True), color=_GREY, marker=_marker(metrics), markersize=3)
        axes.set(ylabel=name, ylim=(0, None))
        _set_epoch_axis(axes)
    return figure


def _plot_losses(axes: Axes, metrics: Sequence[EpochMetrics], marker: str | None) -> None:
    curves: list[tuple[str, str, str, Callable[[EpochMetrics], float | None]]] = [
        ("training", _BLUE, "-", lambda line: line.train_loss_nats),
        ("validation", _GREEN, "--", lambda line: _negative(line.validation_elbo_nats)),
        ("test", _ORANGE, "-.", lambda line: _negative(line.test_elbo_nats)),
    ]
    for name, colour, style, value_of in curves:
        points = _points(metrics, value_of)
        if points:
            label = f"{name}, finally {points[-1][1]:.2f}".replace("-", "−")
            epochs, values = zip(*points, strict=True)
            axes.plot(epochs, values, color=colour, linestyle=style, marker=marker, markersize=3, label=label)
    medians: list[tuple[str, Callable[[EpochMetrics], float | None]]] = [
        (_GREEN, lambda line: _negative(line.validation_elbo_median_nats)),
        (_ORANGE, lambda line: _negative(line.test_elbo_median_nats)),
    ]
    for colour, value_of in medians:
        if points := _points(metrics, value_of):
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=":", linewidth=1.0)
    _set_epoch_axis(axes)


def _points(
    metrics: Sequence[EpochMetrics], value_of: Callable[[EpochMetrics], float | None]
) -> list[tuple[int, float]]:
    values = ((line.epoch, value_of(line)) for line in metrics)
    return [(epoch, value) for epoch, value in values if value is not None]


def _marker(metrics: Sequence[EpochMetrics]) -> str | None:
    return "o" if len(metrics) <= _MARKER_EPOCHS else None


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _set_epoch_axis(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(visible=True)


# The latent space.


def kl_figure(evaluation: Evaluation) -> Figure:
    """Plot the KL of each latent dimension as bars, the largest first."""
    kl = np.asarray(evaluation.kl_per_dim_nats)
    order = np.argsort(-kl, kind="stable")
    figure, (axes,) = _new_figure(2.8)
    axes.bar(range(len(kl)), kl[order], color=_BLUE, width=0.8)
    axes.set(xlabel="dimension of z, the largest KL first", ylabel="KL (nats)", xlim=(-0.6, len(kl) - 0.4))
    axes.set_title(f"KL by dimension; {evaluation.active_units} of {len(kl)} units are active")
    if len(kl) <= _MAX_TICK_LABELS:
        axes.set_xticks(range(len(kl)), [str(dimension) for dimension in order], fontsize=7 if len(kl) > 30 else 8)
    axes.grid(visible=True, axis="y")
    axes.axhline(0, color="#555555", linewidth=0.8)
    return figure


def latent_map_figure(z_loc: Tensor, labels: Tensor | None, class_names: Sequence[str] = ()) -> Figure:
    """Plot observations in the latent space: projected onto two principal components, and by t-SNE.

    Args:
        z_loc: Means of q(z|x), shape `(count, z_dim)`.
        labels: Classes, shape `(count,)`, for the colours.
        class_names: Names of the classes; without them their numbers.
    """
    values = z_loc.double().numpy()
    classes = np.zeros(len(values), int) if labels is None else labels.cpu().numpy()
    names: dict[int, str] = {}
    if labels is not None:
        names = {label: class_names[label] if class_names else str(label) for label in labels.unique().tolist()}
    some = evenly_spaced(len(values), _TSNE_MAX_POINTS).numpy()
    embedded = tsne(values[some])
    figure, axes = _new_figure(5.0 if embedded is None else 4.2, columns=1 if embedded is None else 2)
    _plot_plane(axes[0], values, classes, names)
    if embedded is not None:
        _scatter(axes[1], embedded, classes[some], names)
        axes[1].set(title="t-SNE of z_loc", xlabel="no units: only neighbourhoods mean something", xticks=[], yticks=[])
    if 0 < len(names) <= _MAX_LEGEND_CLASSES:
        handles, found = axes[0].get_legend_handles_labels()
        figure.legend(handles, found, loc="outside lower center", ncols=10, markerscale=3, handletextpad=0.1)
    return figure


def principal_components(values: Floats) -> tuple[Floats, Floats]:
    """Project points onto the two directions of largest variance.

    Args:
        values: Shape `(count, dims)`.

    Returns:
        The projections, shape `(count, 2)`, and each direction's share of the variance, shape `(2,)`.
    """
    centred = values - values.mean(0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary: make its largest entry positive.
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    total = max(float((sizes**2).sum()), np.finfo(np.float64).tiny)
    plane, shares = np.zeros((len(values), 2)), np.zeros(2)
    found = min(2, len(sizes))
    plane[:, :found] = (left * sizes * signs)[:, :found]
    shares[:found] = (sizes**2 / total)[:found]
    return plane, shares


def tsne(values: Floats) -> Floats | None:
    """Embed points in the plane by t-SNE (van der Maaten & Hinton, 2008).

    Args:
        values: Shape `(count, dims)`.

    Returns:
        Shape `(count, 2)`; `None` for at most two dimensions, too few points, or points that all coincide.
    """
    if len(values) < _TSNE_MIN_POINTS or values.shape[1] <= 2 or float(values.var(0).max()) < 1e-12:
        return None
    from sklearn.manifold import TSNE  # slow to import

    perplexity = min(_TSNE_PERPLEXITY, (len(values) - 1) / 3)
    points: Floats = TSNE(random_state=_TSNE_SEED, perplexity=perplexity, init="pca").fit_transform(values)
    return points


def _plot_plane(axes: Axes, values: Floats, classes: NDArray[np.intp], names: dict[int, str]) -> None:
    if values.shape[1] == 1:
        index = np.arange(len(values), dtype=np.float64)
        _scatter(axes, np.stack([values[:, 0], index], axis=1), classes, names)
        axes.set(title="z_loc", xlabel="z_loc[0]", ylabel="observation")
    elif values.shape[1] == 2:
        _scatter(axes, values, classes, names)
        axes.set(title="z_loc", xlabel="z_loc[0]", ylabel="z_loc[1]")
    else:
        plane, shares = principal_components(values)
        _scatter(axes, plane, classes, names)
        axes.set(title="PCA of z_loc")
        axes.set_xlabel(f"1st component ({shares[0]:.0%} of the variance)")
        axes.set_ylabel(f"2nd component ({shares[1]:.0%})")


def _scatter(axes: Axes, points: Floats, classes: NDArray[np.intp], names: dict[int, str]) -> None:
    """Plot points, coloured by class."""
    if not names:
        axes.scatter(points[:, 0], points[:, 1], s=5, color=_BLUE, alpha=0.6, linewidths=0)
        return
    colours = list(_CLASS_COLOURS)
    if len(names) > len(colours):
        colours = [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 0.92, len(names)))]
    placed: list[tuple[Floats, int]] = []  # centre and length of each name drawn so far
    scale = _LETTER_SIZE * np.maximum(np.ptp(points, axis=0), np.finfo(np.float64).tiny)
    for (label, name), colour in zip(names.items(), colours, strict=False):
        mine = points[classes == label]
        axes.scatter(mine[:, 0], mine[:, 1], s=5, color=colour, alpha=0.7, linewidths=0, label=name)
        centre = np.median(mine, axis=0)
        if not any(_overlap(np.abs(centre - other) / scale, len(name) + length) for other, length in placed):
            halo = [withStroke(linewidth=2.5, foreground="white")]
            x, y = centre.tolist()
            axes.text(x, y, name, color=colour, weight="bold", ha="center", va="center", path_effects=halo)
            placed.append((centre, len(name)))


def _overlap(distance: Floats, letters: int) -> bool:
    """Whether two names overlap, given their distance in letters, across and up, and the sum of their lengths."""
    return bool(distance[0] <= letters / 2 and distance[1] <= 1)


# Data that are images: grids.


def is_picture(data_shape: tuple[int, ...]) -> bool:
    """Return whether observations are images: `(height, width)`, or `(channels, height, width)` with 1 or 3."""
    return len(data_shape) == 2 or (len(data_shape) == 3 and data_shape[0] in {1, 3})


class GreyLevels:
    """Maps values to grey levels, from 0, black, to 1, white. Values of images in [0, 1] stay as they are.

    Args:
        images: The images that set the range, any shape. Beyond [0, 1], black and white are their smallest and largest
            value.
    """

    def __init__(self, images: Tensor) -> None:
        self._low, self._high = min(0.0, float(images.min())), max(1.0, float(images.max()))

    def __call__(self, values: Tensor) -> Tensor:
        """Return the grey levels of `values`; below 0 or above 1 if they are out of range."""
        return (values - self._low) / (self._high - self._low)


class Grid:
    """A grid of images, as one array of pixels.

    Args:
        values: Grey levels or colours, shape `(rows, columns, *data_shape)`; clipped to [0, 1].
        group: Number of rows between wider gaps; 0 for none.

    Attributes:
        pixels: uint8, shape `(height, width, 3)`, on white.
        row_centres: The middle of each row, in pixels from the top.
        column_centres: The middle of each column, in pixels from the left.
    """

    def __init__(self, values: Tensor, group: int = 0) -> None:
        rows, columns = values.shape[:2]
        data_shape = values.shape[2:]
        channels, height, width = (1,) * (3 - len(data_shape)) + tuple(data_shape)
        factor = math.ceil(_MIN_TILE / max(height, width))
        levels = np.rint(values.cpu().clamp(0, 1).numpy() * 255).astype(np.uint8)
        tiles = levels.reshape(rows, columns, channels, height, width).transpose(0, 1, 3, 4, 2)
        tiles = np.broadcast_to(tiles, (*tiles.shape[:-1], 3)).repeat(factor, axis=2).repeat(factor, axis=3)
        height, width = tiles.shape[2:4]
        tops = [
            row * (height + _TILE_GAP) + (row // group * (_GROUP_GAP - _TILE_GAP) if group else 0)
            for row in range(rows)
        ]
        lefts = [column * (width + _TILE_GAP) for column in range(columns)]
        self.pixels: NDArray[np.uint8] = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, np.uint8)
        for row, top in enumerate(tops):
            for column, left in enumerate(lefts):
                self.pixels[top : top + height, left : left + width] = tiles[row, column]
        self.row_centres = [top + (height - 1) / 2 for top in tops]
        self.column_centres = [left + (width - 1) / 2 for left in lefts]


def reconstruction_grid(x: Tensor, loc_img: Tensor, levels: GreyLevels) -> Grid:
    """Arrange images in rows, each row above its reconstructions.

    Args:
        x: Images, shape `(count, *data_shape)`.
        loc_img: Their reconstructions, shape `(count, data_dim)`.
        levels: The grey levels.
    """
    rows = [_in_rows(levels(values.reshape(x.shape).cpu())) for values in (x, loc_img)]
    return Grid(torch.stack(rows, dim=1).flatten(0, 1), group=2)


def image_reconstructions_figure(x: Tensor, loc_img: Tensor, levels: GreyLevels) -> Figure:
    """Draw `reconstruction_grid` with labels."""
    grid = reconstruction_grid(x, loc_img, levels)
    names = ["test images", "reconstructed"] * (len(grid.row_centres) // 2)
    return _grid_figure(grid, names, "Test images above their reconstructions")


def image_samples_figure(samples: Samples, data_shape: tuple[int, ...], levels: GreyLevels) -> Figure:
    """Draw samples of the prior, the mean of p(x|z) of each."""
    grid = Grid(levels(samples.loc_img.unflatten(-1, data_shape)))
    return _grid_figure(grid, list(samples.names), "Samples of the prior")


def image_traversals_figure(traversals: Traversals, data_shape: tuple[int, ...], levels: GreyLevels) -> Figure:
    """Draw a row of images for each dimension that moves."""
    grid = Grid(levels(traversals.loc_img.unflatten(-1, data_shape)))
    names = [f"z[{dimension}]" for dimension in traversals.dimensions]
    title = "One dimension moved, the others those of the first test image"
    figure = _grid_figure(grid, names, title, below=_AXIS_HEIGHT)
    (axes,) = figure.axes
    at = zip(grid.column_centres, traversals.steps.tolist(), strict=True)
    whole = {centre: f"{round(step)}".replace("-", "−") for centre, step in at if abs(step - round(step)) < 1e-3}
    axes.set_xticks(list(whole), list(whole.values()))
    axes.set_xlabel("z_loc (σ from its mean over the test images)")
    return figure


def _grid_figure(grid: Grid, names: Sequence[str], title: str, below: float = 0.0) -> Figure:
    """Draw a grid with a name beside each row, and `below` inches left free for an axis."""
    height, width, _ = grid.pixels.shape
    names = [name if len(name) <= _MAX_LABEL else f"{name[: _MAX_LABEL - 1]}…" for name in names]
    left = _LABEL_LETTER * max(map(len, names), default=0) + _MARGIN
    across = _FIGURE_WIDTH - left - _MARGIN
    high = across * height / width
    total = high + _TITLE_HEIGHT + below + _MARGIN
    figure, (axes,) = _new_figure(total)
    figure.set_layout_engine("none")
    axes.set_position((left / _FIGURE_WIDTH, (below + _MARGIN) / total, across / _FIGURE_WIDTH, high / total))
    axes.imshow(grid.pixels, interpolation="nearest")
    axes.set(title=title, xticks=[])
    axes.set_yticks(grid.row_centres if names else [], names)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _in_rows(images: Tensor) -> Tensor:
    """Arrange `(count, ...)` as `(rows, columns, ...)`, the last row filled with white."""
    columns = min(GRID_COLUMNS, len(images))
    padding = images.new_ones((-len(images) % columns, *images.shape[1:]))
    return torch.cat([images, padding]).reshape(-1, columns, *images.shape[1:])


# Data that are not images: features by number.


def feature_reconstructions_figure(x: Tensor, loc_img: Tensor) -> Figure:
    """Plot the features of the largest variance against their reconstructions.

    Args:
        x: Observations, shape `(count, ...)`.
        loc_img: Their reconstructions, shape `(count, data_dim)`.
    """
    true, found = _floats(x), _floats(loc_img)
    shown = _of_largest_variance(true, FEATURES_SHOWN)
    figure, panels = _panels(len(shown))
    for axes, feature in zip(panels, shown, strict=True):
        low, high = true[:, feature].min(), true[:, feature].max()
        axes.plot([low, high], [low, high], color=_GREY, linewidth=1)
        axes.scatter(true[:, feature], found[:, feature], s=5, color=_BLUE, alpha=0.5, linewidths=0)
        axes.set_title(f"x[{feature}], {_explained(true[:, feature], found[:, feature])}")
    figure.supxlabel("test data", fontsize=9)
    figure.supylabel("reconstructed: mean of p(x|z)", fontsize=9)
    return figure


def feature_samples_figure(x: Tensor, samples: Samples) -> Figure:
    """Plot histograms of features, in the data and in draws from the model."""
    true, drawn = _floats(x), _floats(samples.drawn.flatten(0, 1))
    shown = _of_largest_variance(true, FEATURES_SHOWN)
    figure, panels = _panels(len(shown))
    for axes, feature in zip(panels, shown, strict=True):
        both = np.concatenate([true[:, feature], drawn[:, feature]])
        edges = np.histogram_bin_edges(both, _HISTOGRAM_BINS).tolist()
        axes.hist(true[:, feature], edges, density=True, color=_GREY, alpha=0.45, label="test data")
        axes.hist(drawn[:, feature], edges, density=True, histtype="step", color=_ORANGE, linewidth=1.6, label="model")
        axes.set_title(f"x[{feature}]")
        axes.set_yticks([])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.supxlabel("value", fontsize=9)
    figure.supylabel("density", fontsize=9)
    return figure


def feature_traversals_figure(x: Tensor, traversals: Traversals) -> Figure:
    """Plot how far features move from the data's mean along each dimension, in the data's standard deviations."""
    true = _floats(x)
    shown = np.sort(_of_largest_variance(true, _FEATURES_IN_MAP))
    spread = np.where(true.std(0) > 0, true.std(0), 1)
    moved = (traversals.loc_img.double().numpy() - true.mean(0)) / spread
    largest = max(float(np.abs(moved[..., shown]).max()), 1e-6)
    figure, panels = _panels(len(traversals.dimensions), row_height=max(1.8, 0.14 * len(shown) + 0.6))
    first, last = float(traversals.steps[0]), float(traversals.steps[-1])
    half = (last - first) / (len(traversals.steps) - 1) / 2
    extent = (first - half, last + half, len(shown) - 0.5, -0.5)
    for index, (axes, dimension) in enumerate(zip(panels, traversals.dimensions, strict=True)):
        image = axes.imshow(
            moved[index][:, shown].T, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto", extent=extent
        )
        axes.set_title(f"z[{dimension}]")
        names = [f"x[{feature}]" for feature in shown] if index % _PANEL_COLUMNS == 0 else []
        axes.set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(image, ax=panels, label="feature (σ from its mean)", fraction=0.05)
    figure.supxlabel("z_loc (σ from its mean over the test data)", fontsize=9)
    return figure


def _panels(count: int, row_height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` axes, up to three in a row."""
    columns = min(_PANEL_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure, axes = _new_figure(rows * row_height + 0.4, rows, columns)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _floats(values: Tensor) -> Floats:
    return values.cpu().flatten(1).double().numpy()


def _of_largest_variance(values: Floats, count: int) -> NDArray[np.intp]:
    """Return the features of the largest variance, the largest first."""
    return np.argsort(-values.var(0), kind="stable")[:count]


def _explained(true: Floats, found: Floats) -> str:
    """Return R², the share of the variance that the reconstruction explains."""
    variance = float(true.var())
    return f"R² = {1 - float(np.mean((true - found) ** 2)) / variance:.2f}" if variance > 0 else "constant"
