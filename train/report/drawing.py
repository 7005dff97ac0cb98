"""How all pictures of a report look."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito, 2008: told apart by colour-blind people too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"

# Paul Tol's "muted" scheme, for as many classes as have a colour of their own.
CLASS_COLOURS = (
    "#332288",
    "#88CCEE",
    "#117733",
    "#DDCC77",
    "#CC6677",
    "#AA4499",
    "#44AA99",
    "#999933",
    "#882255",
    "#8C8C8C",
)

_DPI = 160
FIGURE_WIDTH = 8.0  # inches, of every picture: on the page they are as wide as each other
_STYLE: Any = {  # matplotlib names its options by type in new versions only
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


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Let what is drawn in the body have the report's style; matplotlib's own settings are left as they were."""
    with rc_context(_STYLE):
        yield


def new_figure(height: float) -> Figure:
    """Return an empty figure of the report's width, `height` inches high."""
    return Figure(figsize=(FIGURE_WIDTH, height), layout="constrained")


def new_axes(figure: Figure, rows: int = 1, columns: int = 1) -> list[Axes]:
    """Return the figure's axes, row by row."""
    return list(figure.subplots(rows, columns, squeeze=False).flat)


def png_of(figure: Figure) -> bytes:
    """Return the figure as a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()
