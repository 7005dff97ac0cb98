"""Bars for the documentation: the time of each way as a part of the slowest's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_OURS_COLOUR, _OTHER_COLOUR = "#1f77b4", "#c7c7c7"


def draw_bars(path: Path, groups: Sequence[tuple[str, Mapping[str, float]]], ours: str) -> None:
    """Draw a panel a group, a bar a way, as long as its seconds are times ours; those that begin with `ours` stand out.

    Args:
        path: An `.svg` or `.png` file.
        groups: Titles, and seconds by name.
        ours: The name whose time is 1.
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
