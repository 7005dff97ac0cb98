"""Pictures in and out, for the command line and for whoever wants them; needs Pillow, and nothing else here does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ._errors import InputError, InstallError

try:
    from PIL import Image, UnidentifiedImageError
except ModuleNotFoundError as error:
    raise InstallError("pictures need Pillow; pip install pillow") from error

_GAP = 1  # pixels of background between the images of a grid
_GAP_GREY = 96
_SMALLEST_TILE = 56  # pixels; smaller images are enlarged by a whole factor
_LARGEST_GREY = 255


def read_image(path: str | os.PathLike[str], data_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read an image file as one observation, uint8 in [0, 255], shape `data_shape`.

    Args:
        path: PNG, JPEG, or what else Pillow reads; colours are turned to grey.
        data_shape: `(1, height, width)`; the image must have this size, it is not resized.

    Raises:
        InputError: The file is no image, or of another size.
    """
    height, width = _grey_size(data_shape)
    try:
        with Image.open(path) as image:
            if image.size != (width, height):
                raise InputError(
                    f"{path} must be {width} wide and {height} high, got {image.size[0]} by {image.size[1]}; resize it"
                )
            return np.asarray(image.convert("L")).reshape(data_shape)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error


def save_grid(
    path: str | os.PathLike[str], values: NDArray[np.float32], data_shape: tuple[int, ...], columns: int = 8
) -> None:
    """Save images side by side as one PNG, small ones enlarged so that pixels can be seen.

    Args:
        path: The file; must end in `.png`.
        values: Images, float32 in [0, 1], shape `(count, data_dim)` or `(count, *data_shape)`, at least one.
        data_shape: Shape of one of them, `(1, height, width)`.
        columns: Images in a row.

    Raises:
        InputError: There are no images, or `path` does not end in `.png`.
    """
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"a grid is saved as .png, got {path}")
    if len(values) == 0:
        raise InputError("a grid needs at least one image, got none")
    height, width = _grey_size(data_shape)
    factor = max(1, -(-_SMALLEST_TILE // max(height, width)))
    pixels = np.rint(values.reshape(-1, height, width).clip(0, 1) * _LARGEST_GREY).astype(np.uint8)
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    gap = _GAP * factor
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    tile_height, tile_width = pixels.shape[1] + gap, pixels.shape[2] + gap
    canvas = np.full((rows * tile_height + gap, columns * tile_width + gap), _GAP_GREY, np.uint8)
    for index, image in enumerate(pixels):
        top, left = gap + index // columns * tile_height, gap + index % columns * tile_width
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    Image.fromarray(canvas).save(path, optimize=True)


def _grey_size(data_shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a grey image; rows of numbers are drawn as a line."""
    if len(data_shape) == 1:
        return 1, data_shape[0]
    if len(data_shape) != 3 or data_shape[0] != 1:
        raise InputError(f"pictures need grey images, shape (1, height, width), got data_shape {data_shape}")
    return data_shape[1], data_shape[2]
