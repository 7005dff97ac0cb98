"""What the benchmarks share: calls that take turns, a check that all give the same numbers, and a bar chart.

Calls take turns so that anything else that the machine does slows down all of them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

_OURS_COLOUR, _OTHER_COLOUR = "#1f77b4", "#c7c7c7"
_CALM_S = 0.25  # idle threads of the way before spin for a while: ONNX Runtime's for 50 ms, OpenMP's for up to 200 ms
_MAX_CALLS = 2000

Call = Callable[[], object]


def check_equal(name: str, got: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> None:
    """Refuse a way that computes something else.

    Raises:
        ClickException: Shape or numbers are not those expected.
    """
    if got.shape != expected.shape:
        raise click.ClickException(f"{name} gives shape {got.shape}, expected {expected.shape}")
    worst = float(np.abs(got - expected).max())
    if not worst <= tolerance:  # NaN is refused too
        raise click.ClickException(f"{name} gives other numbers: off by {worst:.2e}, and {tolerance:.0e} is allowed")


def rounds(names: Iterable[str], count: int) -> Iterator[list[str]]:
    """Yield all names `count` times, each time in another order, so that no name always follows the same one."""
    shuffled, every = random.Random(0), list(names)  # noqa: S311 - an order, no secret
    for _ in range(count):
        yield shuffled.sample(every, len(every))


def time_in_turn(calls: Mapping[str, Call], repeats: int, block_s: float) -> dict[str, list[float]]:
    """Return the seconds a call takes, `repeats` of each, by name.

    In each turn a way runs alone for about `block_s`, after a pause and one call that is not counted.
    """
    counts = {name: _calls_in(call, block_s) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for names in rounds(calls, repeats):
        for name in names:
            call = calls[name]
            time.sleep(_CALM_S)
            call()
            start = time.perf_counter()
            for _ in range(counts[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / counts[name])
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def draw_bars(path: Path, groups: Sequence[tuple[str, Mapping[str, float]]], ours: str) -> None:
    """Draw a panel for each group, with a bar for each way: its time divided by ours.

    Args:
        path: An `.svg` or `.png` file.
        groups: Title and seconds by name, for each panel.
        ours: The name whose time is 1; bars whose names begin with it are coloured.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "edgevae", "font.size": 8}):
        columns = min(len(groups), 4)
        rows = -(-len(groups) // columns)
        height = 0.6 + 0.2 * max(len(seconds) for _, seconds in groups)
        figure, axes = plt.subplots(rows, columns, figsize=(2.9 * columns, height * rows), squeeze=False)
        for panel in axes.flat[len(groups) :]:
            panel.set_axis_off()
        for panel, (title, seconds) in zip(axes.flat, groups, strict=False):
            names = list(seconds)[::-1]
            times = [seconds[name] / seconds[ours] for name in names]
            colours = [_OURS_COLOUR if name.startswith(ours) else _OTHER_COLOUR for name in names]
            panel.bar_label(panel.barh(names, times, color=colours), fmt="%.2f", padding=2)
            panel.set_title(title)
            panel.set_xlim(0, 1.25 * max(times))
            panel.set_xticks([])
            panel.spines[["top", "right", "bottom"]].set_visible(False)
        figure.supxlabel(f"time, {ours} = 1; shorter is faster")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})
        plt.close(figure)


def _calls_in(call: Call, block_s: float) -> int:
    for _ in range(3):
        call()
    start = time.perf_counter()
    call()
    return min(max(round(block_s / (time.perf_counter() - start)), 1), _MAX_CALLS)
