"""Folders of image files, those of a class in a folder of its own."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..errors import DatasetError
from .preprocessing import Preprocessing
from .rows import Rows
from .source import Source

RESIZE_FILTER = Image.Resampling.BILINEAR
"""How images are resized, here and in `edgevae.images`: it looks at all pixels when it makes an image smaller."""

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP") + (
    ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()
)
"""What is read, here and in `edgevae.images`: EPS, which Pillow knows too, is a program that Ghostscript would run."""

MAX_PIXELS = 50_000_000
"""Of an image, here and in `edgevae.images`: a small file may hold more than fits into memory."""

_LARGEST_16_BIT = 65535
_DEEP = "I;16"
_GREY = ("1", "L")
_COLOUR = ("P", "RGB")


@dataclasses.dataclass(frozen=True)
class _Header:
    """What an image file says of itself before its pixels are read."""

    mode: str
    height: int
    width: int


def open_folder(path: Path, resize: tuple[int, int] | None, grey: bool, labels: bool) -> Source:
    """Read a folder of image files into memory, uint8, or float32 in [0, 1] where an image has 16 bits.

    The images are in the order of their names, folder by folder. They have one channel if all of them are grey, or are
    to be made grey, and three otherwise: a grey image among coloured ones has three equal channels.

    Args:
        path: Holds image files, or a folder of them for each class; names that begin with a dot are passed over.
        resize: Height and width that all shall have; without it they must have one size.
        grey: Whether coloured images are made grey, before they are resized.
        labels: Whether to number the class folders: by their names in order, as numbers where all names are such.

    Raises:
        DatasetError: The folder or a class is empty, a file is no image, damaged, transparent, or of another size than
            the first, or there are no class folders and labels are asked for.
    """
    names, files = _files_of(path)
    if labels and not names:
        raise DatasetError(f"{path} must hold a folder for each class, got images only; or train without labels")
    flat = [file for _, of_class in files for file in of_class]
    headers = [_header(file) for file in flat]
    channels = 1 if grey or all(header.mode not in _COLOUR for header in headers) else 3
    deep = [file for file, header in zip(flat, headers, strict=True) if header.mode.startswith(_DEEP)]
    if deep and channels == 3:
        raise DatasetError(f"{deep[0]} is grey with 16 bits, and others have colours; give --grey, or convert it")
    if resize is None:
        _check_sizes(flat, headers)
    height, width = resize or (headers[0].height, headers[0].width)
    pixels = np.empty((len(flat), channels, height, width), np.float32 if deep else np.uint8)
    for row, file in zip(pixels, flat, strict=True):
        row[...] = _read(file, channels, resize, deep=bool(deep))
    preprocessing = Preprocessing(resize=resize, grey=grey)
    ends = (0.0, 1.0) if deep else (0.0, 255.0)
    rows = Rows(torch.from_numpy(pixels), preprocessing, name=str(path), value_range=ends)
    if not labels:
        return Source(path, rows)
    numbers = np.concatenate([np.full(len(of_class), names.index(name), np.int64) for name, of_class in files])
    return Source(path, rows, torch.from_numpy(numbers), names)


def _files_of(path: Path) -> tuple[tuple[str, ...], list[tuple[str, list[Path]]]]:
    """Names of the classes, and the images of each; without class folders no names, and all images together."""
    entries = _visible(path)
    folders = [entry for entry in entries if entry.is_dir()]
    if not entries:
        raise DatasetError(f"{path} is an empty folder; expected image files, or a folder of them for each class")
    if not folders:
        return (), [("", [_known_image(file) for file in entries])]
    if len(folders) < len(entries):
        file = next(entry for entry in entries if not entry.is_dir())
        raise DatasetError(f"{path} holds folders and also {file.name}; a folder of classes may hold folders only")
    if all(folder.name.isdecimal() for folder in folders):
        folders.sort(key=lambda folder: (int(folder.name), folder.name))
    classes = [(folder.name, [_known_image(file) for file in _visible(folder)]) for folder in folders]
    empty = [name for name, files in classes if not files]
    if empty:
        raise DatasetError(f"{path / empty[0]} is an empty class; put images into it, or remove the folder")
    return tuple(name for name, _ in classes), classes


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _known_image(file: Path) -> Path:
    if file.is_dir():
        raise DatasetError(f"{file} is a folder within a class; a class folder may hold images only")
    if Image.registered_extensions().get(file.suffix.lower()) not in FORMATS:
        raise DatasetError(f"{file} is no image by its name; move it out of the folder")
    return file


def _header(file: Path) -> _Header:
    try:
        with Image.open(file, formats=FORMATS) as image:
            frames = getattr(image, "n_frames", 1)
            transparent = image.mode in {"LA", "PA", "RGBA", "La", "RGBa"} or "transparency" in image.info
            header = _Header(image.mode, image.height, image.width)
    except Exception as error:  # on damaged files Pillow's decoders raise errors of many unrelated classes
        raise DatasetError(f"{file} cannot be read as an image: {error}; replace it") from error
    if header.height * header.width > MAX_PIXELS:
        raise DatasetError(
            f"{file} must have at most {MAX_PIXELS:,} pixels, got {header.width} by {header.height}; make it smaller"
        )
    if frames > 1:
        raise DatasetError(f"{file} holds {frames} images, expected one; save each as a file of its own")
    if transparent:
        raise DatasetError(f"{file} is transparent, and its background is not known; flatten it first")
    if header.mode not in _GREY + _COLOUR and not header.mode.startswith(_DEEP):
        raise DatasetError(f"{file} has mode {header.mode}; expected one of {', '.join(_GREY + _COLOUR)}; convert it")
    return header


def _check_sizes(files: Sequence[Path], headers: Sequence[_Header]) -> None:
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        if (header.height, header.width) != (first.height, first.width):
            raise DatasetError(
                f"{file} is {header.height} high and {header.width} wide, and {files[0].name} {first.height} by "
                f"{first.width}; give --resize H,W, like --resize {first.height},{first.width}, to make all of one size"
            )


def _read(file: Path, channels: int, resize: tuple[int, int] | None, *, deep: bool) -> NDArray[np.generic]:
    """Read one image, shape `(channels, height, width)`: uint8, or float32 in [0, 1] where some have 16 bits."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            is_deep = image.mode.startswith(_DEEP)
            mode = "F" if is_deep else "L" if channels == 1 else "RGB"
            plain = image if image.mode == mode else image.convert(mode)  # a copy of a large image is as large
            if resize is not None:
                plain = plain.resize(resize[::-1], RESIZE_FILTER)
            pixels = np.asarray(plain)
    except Exception as error:  # on damaged files Pillow's decoders raise errors of many unrelated classes
        raise DatasetError(f"{file} cannot be read as an image: {error}; replace it") from error
    if deep:
        pixels = pixels.astype(np.float32) / np.float32(_LARGEST_16_BIT if is_deep else 255)
    return pixels.clip(0, 1 if deep else 255).reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)
