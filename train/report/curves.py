"""How the training went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .drawing import BLUE, GREEN, GREY, ORANGE, new_axes, new_figure

if TYPE_CHECKING:
    from ..run import EpochMetrics

_MARKED = 12  # epochs; up to as many are shown as points too
_ENLARGED = 8  # epochs; from as many the later ones get axes of their own
_LATE = 4  # of the epochs, a quarter is left out there


def loss_figure(metrics: Sequence[EpochMetrics]) -> Figure:
    """Draw the losses by epoch, nats an image; of a long training the later epochs once more, enlarged."""
    figure = new_figure(3.4)
    late = [line for line in metrics if line.epoch > metrics[-1].epoch // _LATE]
    enlarged = len(metrics) >= _ENLARGED and len(late) > 1
    axes = new_axes(figure, columns=2 if enlarged else 1)
    _draw_losses(axes[0], metrics)
    axes[0].set(title="Loss", ylabel="loss = −ELBO (nats an image)")
    axes[0].legend()
    if enlarged:
        _draw_losses(axes[1], late)
        axes[1].set(title=f"From epoch {late[0].epoch}")
    return figure


def steering_figure(metrics: Sequence[EpochMetrics]) -> Figure | None:
    """Draw learning rate and beta by epoch, those that changed; `None` where none did."""
    panels: list[tuple[str, Callable[[EpochMetrics], float | None]]] = [
        ("learning rate", lambda line: line.learning_rate),
        ("beta", lambda line: line.beta),
    ]
    curves = [(name, _points(metrics, value_of)) for name, value_of in panels]
    curves = [(name, points) for name, points in curves if len({value for _, value in points}) > 1]
    if not curves:
        return None
    figure = new_figure(2.6)
    for axes, (name, points) in zip(new_axes(figure, columns=len(curves)), curves, strict=True):
        axes.plot(*zip(*points, strict=True), color=GREY, marker="o" if len(points) <= _MARKED else None, markersize=3)
        axes.set(ylabel=name, ylim=(0, None))
        _by_epoch(axes)
    return figure


def _draw_losses(axes: Axes, metrics: Sequence[EpochMetrics]) -> None:
    curves: list[tuple[str, str, str, Callable[[EpochMetrics], float | None]]] = [
        ("training", BLUE, "-", lambda line: line.train_loss_nats),
        ("validation", GREEN, "--", lambda line: _negative(line.validation_elbo_nats)),
        ("test", ORANGE, "-.", lambda line: _negative(line.test_elbo_nats)),
    ]
    for name, colour, style, value_of in curves:
        points = _points(metrics, value_of)
        if points:
            marker = "o" if len(points) <= _MARKED else None
            label = f"{name}, at last {points[-1][1]:.2f}"
            axes.plot(
                *zip(*points, strict=True), color=colour, linestyle=style, marker=marker, markersize=3, label=label
            )
    _by_epoch(axes)


def _points(
    metrics: Sequence[EpochMetrics], value_of: Callable[[EpochMetrics], float | None]
) -> list[tuple[int, float]]:
    values = ((line.epoch, value_of(line)) for line in metrics)
    return [(epoch, value) for epoch, value in values if value is not None]


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _by_epoch(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True)
