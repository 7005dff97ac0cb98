"""Image files in, image grids out; needs Pillow, and nothing else in the runtime does."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, InstallError
from .inputs import array_of, count, finite

try:
    from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
except ModuleNotFoundError as error:
    raise InstallError("pictures need Pillow; pip install pillow") from error

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP") + (
    ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()
)
"""The formats that are read. Not EPS, which Pillow knows too: Ghostscript would run it as a program."""

MAX_PIXELS = 50_000_000
"""Limit for an image: a small file may hold more pixels than fit into memory."""

_GAP = 1  # pixels of background between the images of a grid
_GAP_GREY = 96
_SET_GAP = 8  # pixels between sets of images with names
_LABEL_MARGIN, _LABEL_HEIGHT = 6, 11  # pixels, of a set's name
_SMALLEST_TILE = 56  # pixels; smaller images are enlarged by a whole factor
_LARGEST_GREY = 255
_LARGEST_16_BIT = 65535
_RESIZE_FILTER = Image.Resampling.BILINEAR  # looks at all pixels when it makes an image smaller
_SCAN, _MAX_SCANS = b"\xff\xda", 100  # a progressive JPEG has about ten; each takes as long as a whole image
_GREY, _COLOUR, _16_BIT = ("1", "L"), ("P", "RGB"), "I;16"
_JPEG = ("JPEG", "MPO")
_WITH_ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


class ImageHeader(NamedTuple):
    """The header of an image file, read before its pixels.

    Args:
        height: In pixels, of the image as a viewer shows it.
        width: Likewise.
        is_grey: Whether it has no colours.
        is_16_bit: Whether it is grey with 16 bits a pixel.
    """

    height: int
    width: int
    is_grey: bool
    is_16_bit: bool


def is_image_name(path: str | os.PathLike[str]) -> bool:
    """Return whether a file's name has the suffix of a format that `read_image` reads."""
    return Image.registered_extensions().get(Path(path).suffix.lower()) in FORMATS


def read_image(
    file: str | os.PathLike[str] | BinaryIO, data_shape: tuple[int, ...], *, resize: bool = False
) -> NDArray[Any]:
    """Read an image file as one observation, shape `data_shape`, turned as its EXIF orientation says.

    Args:
        file: Path of a PNG, JPEG, BMP, GIF, JPEG 2000, PPM, QOI, SGI, TGA, TIFF, WebP, or AVIF, or such a file, opened.
            For a grey model colours are turned to grey; 16-bit grey keeps its depth.
        data_shape: Shape of an observation; the image must have its size unless it is resized.
        resize: Whether to resize an image of another size: for models whose training images were, which
            `manifest.preprocessing.resize` says. Colours are turned to grey before. At most 50 million pixels.

    Returns:
        uint8 in [0, 255]; float32 in [0, 1] for 16-bit images.

    Raises:
        InputError: The file is no image, damaged, or holds several, or it is of another size, too large, transparent,
            of a kind whose values have no range, or a JPEG of more than 100 scans.
    """
    channels, height, width = _image_shape(data_shape)
    with _open_image(file) as image:
        if not resize and sorted(image.size) != sorted((width, height)):
            _refuse_size(image.size, width, height)  # before anything is decoded
        header = _read_header(image)
        if header.is_16_bit and channels != 1:
            raise InputError(_unknown_mode(image))
        if not resize and (header.width, header.height) != (width, height):
            _refuse_size((header.width, header.height), width, height)
        ImageOps.exif_transpose(image, in_place=True)  # a copy of a large image is as large
        mode = "F" if header.is_16_bit else "L" if channels == 1 else "RGB"
        plain = image if image.mode == mode else image.convert(mode)
        if resize:
            plain = plain.resize((width, height), _RESIZE_FILTER)
        pixels = np.asarray(plain)
    if header.is_16_bit:
        return (pixels / np.float32(_LARGEST_16_BIT)).clip(0, 1).reshape(data_shape)
    return pixels.reshape(height, width, channels).transpose(2, 0, 1).reshape(data_shape)


def read_image_header(file: str | os.PathLike[str] | BinaryIO) -> ImageHeader:
    """Read the header of an image file, and check that `read_image` accepts it.

    Raises:
        InputError: As for `read_image`, but images of any size are accepted, and damaged pixels are not found.
    """
    with _open_image(file) as image:
        return _read_header(image)


@contextlib.contextmanager
def _open_image(file: str | os.PathLike[str] | BinaryIO) -> Iterator[Image.Image]:
    """Open an image; any error in the block becomes an `InputError` that names the file."""
    if isinstance(file, (str, os.PathLike)):
        what = f"{os.fspath(file)} cannot be read as an image"
    else:
        what = "the image cannot be read"
    try:
        with contextlib.ExitStack() as stack:
            # Not by name: Pillow would map an uncompressed file, and get the size of a rotated one wrong.
            opened = stack.enter_context(Path(file).open("rb")) if isinstance(file, (str, os.PathLike)) else file
            yield stack.enter_context(Image.open(opened, formats=FORMATS))
    except InputError:
        raise
    except UnidentifiedImageError as error:  # its message shows an object's address
        known = ", ".join(FORMATS)
        raise InputError(f"{what}: it is damaged, or none of {known}") from error
    except Exception as error:  # on damaged files Pillow's decoders raise errors of many unrelated classes
        raise InputError(f"{what}: {error}") from error


def _read_header(image: Image.Image) -> ImageHeader:
    """Return the header of an image, or refuse it, before its pixels are read."""
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"the image must have at most {MAX_PIXELS:,} pixels, got {image.width} by {image.height}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise InputError(f"the file holds {frames} images, expected one; save each as a file of its own")
    if image.format in _JPEG and (scans := _count_scans(image)) > _MAX_SCANS:
        raise InputError(f"the image has {scans} scans, expected at most {_MAX_SCANS}; save it again")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        raise InputError("the image is transparent, and its background is not known; flatten it first")
    is_16_bit = image.mode.startswith(_16_BIT)
    if image.mode not in _GREY + _COLOUR and not is_16_bit:
        raise InputError(_unknown_mode(image))
    width, height = image.size
    # A square keeps its size, and looking for the orientation in a PNG decodes it.
    if width != height and image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS:
        width, height = ImageOps.exif_transpose(image).size  # Pillow has turned the size of some formats already
    return ImageHeader(height, width, image.mode not in _COLOUR, is_16_bit)


def _unknown_mode(image: Image.Image) -> str:
    return f"the image has mode {image.mode}; expected one of {', '.join(_GREY + _COLOUR)}; convert it"


def _refuse_size(size: tuple[int, int], width: int, height: int) -> None:
    raise InputError(f"the image must be {width} wide and {height} high, got {size[0]} by {size[1]}; resize it")


def _count_scans(image: Image.Image) -> int:
    """Return the number of scans of a JPEG."""
    file = getattr(image, "fp", None)  # Pillow's own, opened for reading
    if file is None:
        return 0
    place = file.tell()
    file.seek(0)
    scans: int = file.read().count(_SCAN)
    file.seek(place)
    return scans


def can_draw(data_shape: tuple[int, ...]) -> bool:
    """Return whether observations of this shape are images: rows of numbers, grey, or RGB."""
    return len(data_shape) < 3 or (len(data_shape) == 3 and data_shape[0] in (1, 3))


def save_grid(
    path: str | os.PathLike[str],
    values: NDArray[np.float32] | Mapping[str, NDArray[np.float32]],
    data_shape: tuple[int, ...],
    columns: int = 8,
) -> None:
    """Save images side by side as one PNG. Small images are enlarged by a whole factor.

    Args:
        path: The file; must end in `.png`.
        values: Images, float32, shape `(count, data_dim)` or `(count, *data_shape)`, at least one. Or several sets of
            images by name: each begins a new row, with its name at the left and a gap above. 0 is black and 1 is
            white; values outside are clipped.
        data_shape: Shape of one image: `(width,)`, `(height, width)`, or `(channels, height, width)` with 1 or 3
            channels.
        columns: Images in a row, at least 1.

    Raises:
        InputError: There are no images, their shape is not that of an image, they hold NaN or infinity, `columns` is
            below 1, or `path` does not end in `.png`.
    """
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"a grid is saved as .png, got {path}")
    columns = count("columns", columns)
    if columns == 0:
        raise InputError("columns must be at least 1, got 0")
    sets = values if isinstance(values, Mapping) else {"": values}
    pixels = {name: _pixels(each, data_shape) for name, each in sets.items()}
    if not pixels:
        raise InputError("values must hold at least one image, got none")
    first = next(iter(pixels.values()))
    gap = first.shape[1] // _image_shape(data_shape)[1] * _GAP
    tile_height, tile_width = first.shape[1] + gap, first.shape[2] + gap
    columns = min(columns, max(map(len, pixels.values())))
    font = ImageFont.load_default()
    left = max((round(font.getlength(name)) + 2 * _LABEL_MARGIN for name in pixels if name), default=0)
    tops: dict[str, int] = {}
    bottom = 0
    for name, images in pixels.items():
        tops[name] = bottom + (_SET_GAP if tops else 0)
        bottom = tops[name] + -(-len(images) // columns) * tile_height
    canvas = np.full((bottom + gap, left + columns * tile_width + gap, first.shape[3]), _GAP_GREY, np.uint8)
    for name, images in pixels.items():
        for index, image in enumerate(images):
            y = tops[name] + gap + index // columns * tile_height
            x = left + gap + index % columns * tile_width
            canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
    picture = Image.fromarray(canvas[..., 0] if canvas.shape[2] == 1 else canvas)
    draw = ImageDraw.Draw(picture)
    for name, top in tops.items():
        middle = top + gap + first.shape[1] // 2 - _LABEL_HEIGHT // 2
        draw.text((_LABEL_MARGIN, middle), name, fill="white", font=font)
    picture.save(path, optimize=True)


def _pixels(values: NDArray[np.float32], data_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return images as they are drawn, shape `(count, height, width, channels)`."""
    channels, height, width = _image_shape(data_shape)
    values, size = finite("values", array_of("values", values)), math.prod(data_shape)
    if values.ndim < 2 or values.size != len(values) * size:
        raise InputError(f"values must have shape (count, {size}) or (count, *data_shape), got {values.shape}")
    if len(values) == 0:
        raise InputError("values must hold at least one image, got none")
    grey = values.reshape(-1, channels, height, width).clip(0, 1)
    factor = max(1, -(-_SMALLEST_TILE // max(height, width)))
    pixels = np.rint(grey * _LARGEST_GREY).astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def _image_shape(data_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of an observation as an image."""
    if not can_draw(data_shape):
        raise InputError(f"pictures need 1 or 3 channels, shape (channels, height, width), got data_shape {data_shape}")
    channels, height, width = (1,) * (3 - len(data_shape)) + data_shape
    return channels, height, width
