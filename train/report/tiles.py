"""Images side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_SMALLEST_TILE = 56  # pixels; smaller images are enlarged by a whole factor
_GAP = 2
_GROUP_GAP = 12
_BACKGROUND = 255


def is_picture(data_shape: tuple[int, ...]) -> bool:
    """Return whether observations are images: `(height, width)`, or `(channels, height, width)` with 1 or 3."""
    return len(data_shape) == 2 or (len(data_shape) == 3 and data_shape[0] in {1, 3})


class Tiles:
    """A grid of images as one array of pixels.

    Args:
        values: Shape `(rows, columns, *data_shape)`; 0 is black and 1 white, what lies outside is shown as these.
        group: So many rows stand closer together; 0 for no groups.

    Attributes:
        pixels: uint8, shape `(height, width, 3)`.
        row_centres: Where each row's middle is, in pixels from above.
        column_centres: Where each column's middle is, in pixels from the left.
    """

    def __init__(self, values: Tensor, group: int = 0) -> None:
        rows, columns = values.shape[:2]
        data_shape = values.shape[2:]
        channels, height, width = (1,) * (3 - len(data_shape)) + tuple(data_shape)
        factor = max(1, -(-_SMALLEST_TILE // max(height, width)))
        grey = np.rint(values.cpu().clamp(0, 1).numpy() * 255).astype(np.uint8)
        tiles = grey.reshape(rows, columns, channels, height, width).transpose(0, 1, 3, 4, 2)
        tiles = np.broadcast_to(tiles, (*tiles.shape[:-1], 3)).repeat(factor, axis=2).repeat(factor, axis=3)
        height, width = tiles.shape[2:4]
        tops = [row * (height + _GAP) + (row // group * (_GROUP_GAP - _GAP) if group else 0) for row in range(rows)]
        lefts = [column * (width + _GAP) for column in range(columns)]
        self.pixels: NDArray[np.uint8] = np.full((tops[-1] + height, lefts[-1] + width, 3), _BACKGROUND, np.uint8)
        for row, top in enumerate(tops):
            for column, left in enumerate(lefts):
                self.pixels[top : top + height, left : left + width] = tiles[row, column]
        self.row_centres = [top + (height - 1) / 2 for top in tops]
        self.column_centres = [left + (width - 1) / 2 for left in lefts]


class Shades:
    """What is black and what is white: 0 and 1, or, where the data goes beyond them, its own range.

    Args:
        images: Those whose range is shown, any shape.
    """

    def __init__(self, images: Tensor) -> None:
        self._low, self._high = min(0.0, float(images.min())), max(1.0, float(images.max()))

    def __call__(self, values: Tensor) -> Tensor:
        """Return the values as shades from 0 to 1; what lies outside of the range stays outside."""
        return (values - self._low) / (self._high - self._low)
