"""Observations as files in memory: an image, or a `.npy` array of several."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevae import InputError
from edgevae.images import read_image

# Each kind of image begins with bytes of its own, and what does not is refused before any decoder sees it.
IMAGES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
ARRAYS = ("application/x-npy", "application/octet-stream")
_MORE_THAN_PIXELS = 2**18  # bytes: colour profiles, previews, comments
_MOST_PER_VALUE = 4  # bytes: neither format needs more


def max_image_bytes(data_shape: tuple[int, ...]) -> int:
    """Return how large the file of an image may be: what is larger is made to keep a decoder busy."""
    return _MORE_THAN_PIXELS + _MOST_PER_VALUE * math.prod(data_shape)


def decode(body: bytes, media_type: str, data_shape: tuple[int, ...]) -> NDArray[Any]:
    """Read a file; whether an array fits the model is the model's to say.

    Args:
        body: Its content; may be anything.
        media_type: One of `IMAGES` or `ARRAYS`.
        data_shape: Shape of an observation, which an image must have.

    Raises:
        InputError: The content is not what `media_type` says, or an image of another size.
    """
    if media_type in IMAGES:
        if not body.startswith(IMAGES[media_type]):
            raise InputError(f"the body is no {media_type}")
        return read_image(io.BytesIO(body), data_shape)[None]
    try:
        array = np.load(io.BytesIO(body), allow_pickle=False)
    except Exception as error:  # what foreign bytes make NumPy raise, from ValueError to MemoryError
        raise InputError(f"the body is no .npy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError("the body is a .npz archive; send one array as .npy")
    return array


def encode(rows: NDArray[np.float32], media_type: str, data_shape: tuple[int, ...]) -> tuple[bytes, str]:
    """Write observations in the form that `media_type` asks for; return the file and its own media type.

    An image is written as PNG, which loses nothing but the values between 255 levels; black is 0 and white 1, and what
    lies outside is shown as these.
    """
    file = io.BytesIO()
    if media_type not in IMAGES:
        np.save(file, rows)
        return file.getvalue(), ARRAYS[0]
    channels, height, width = (1,) * (3 - len(data_shape)) + data_shape
    pixels = np.rint(rows[0].reshape(channels, height, width).clip(0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue(), "image/png"
