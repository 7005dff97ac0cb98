"""The rows of one input: an image, a folder of images, an array in NumPy's or in MNIST's format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..arrays import is_idx_name, open_idx, open_npy, open_npz
from ..errors import InputError
from ..preprocessing import Preprocessing

_MAX_UNPACKED_BYTES = 2**30
_LATENT_SPACE_ID = "latent_space_id"


class Source(msgspec.Struct, frozen=True, eq=False):
    """Rows that lie in a file or in a folder.

    Args:
        shape: Shape of all of them, the rows first.
        read: Returns the rows from one number up to another, which it takes from the disk at that moment.
        y: Labels that the file holds, as it holds them.
        latent_space_id: The latent space that the file names.
        is_reference: Whether the file is a bundle's reference, whose observations are as the graphs take them.
    """

    shape: tuple[int, ...]
    read: Callable[[int, int], NDArray[Any]]
    y: NDArray[Any] | None = None
    latent_space_id: str | None = None
    is_reference: bool = False


def open_observations_source(
    path: Path, data_shape: tuple[int, ...], preprocessing: Preprocessing | None = None
) -> Source:
    """Return the observations in a file, or in a folder of images.

    Image files are resized as `preprocessing` says, and their pixels brought into its scale, black being its low end.

    Raises:
        InputError: It cannot be read, or holds no observations.
        InstallError: It is a picture, and Pillow is not installed.
        OSError: It cannot be read.
    """
    if path.is_dir():
        return _images(_files_of(path), data_shape, preprocessing, named=True)
    if is_idx_name(path):
        idx = open_idx(path, _MAX_UNPACKED_BYTES)
        return _mapped(lambda: open_idx(path)) if isinstance(idx, np.memmap) else _array(idx)
    if path.suffix.lower() in {".npy", ".npz"}:
        source = open_array_source(path, ("x",))
        if preprocessing is None or not source.is_reference:
            return source
        raw = preprocessing.raw
        return msgspec.structs.replace(source, read=lambda start, stop: raw(source.read(start, stop)))
    return _images([path], data_shape, preprocessing, named=False)


def open_array_source(path: Path, names: Sequence[str]) -> Source:
    """Return the array of a `.npy` file, memory-mapped, or that of a `.npz` file which has the first of some names.

    Raises:
        InputError: It cannot be read, or has no such array.
        OSError: It cannot be read.
    """
    if path.suffix.lower() == ".npy":
        return _mapped(lambda: open_npy(path))
    arrays, there = open_npz(path, *names, "y", _LATENT_SPACE_ID)
    found = next((name for name in names if name in arrays), None)
    if found is None:
        raise InputError(f"must hold an array {' or '.join(names)}, got {', '.join(there) or 'nothing'}")
    space = str(arrays[_LATENT_SPACE_ID]) if _LATENT_SPACE_ID in arrays else None
    is_reference = {"case", "z_loc"} <= set(there)
    return msgspec.structs.replace(
        _array(arrays[found]), y=arrays.get("y"), latent_space_id=space, is_reference=is_reference
    )


def read_labels(path: Path) -> NDArray[Any]:
    """Return the labels in a `.npy` file, or in one of MNIST's format.

    Raises:
        InputError: It cannot be read, or is of another kind.
        OSError: It cannot be read.
    """
    if is_idx_name(path):
        return open_idx(path, _MAX_UNPACKED_BYTES)
    if path.suffix.lower() != ".npy":
        raise InputError("labels are read from .npy, or from IDX (-ubyte, .idx, .gz)")
    source = open_array_source(path, ("y",))
    return source.read(0, source.shape[0])


def _array(array: NDArray[Any]) -> Source:
    if array.ndim == 0:
        raise InputError("must hold rows, got a single value; add a batch axis with x[None]")
    return Source(array.shape, lambda start, stop: array[start:stop])


def _mapped(mapped: Callable[[], NDArray[Any]]) -> Source:
    """Rows of a memory-mapped file: mapped anew for each batch, so that what was read does not stay in memory."""
    return msgspec.structs.replace(_array(mapped()), read=lambda start, stop: mapped()[start:stop])


def _images(
    files: Sequence[Path], data_shape: tuple[int, ...], preprocessing: Preprocessing | None, *, named: bool
) -> Source:
    """Images of one observation each, as floats: those of a folder may have different depths."""
    from ..images import read_image  # Pillow, which only pictures need

    resize = preprocessing is not None and preprocessing.resize is not None

    def read(start: int, stop: int) -> NDArray[np.float32]:
        rows = np.empty((stop - start, *data_shape), np.float32)
        for row, file in zip(rows, files[start:stop], strict=True):
            try:
                pixels = read_image(file, data_shape, resize=resize)
            except InputError as error:
                if not named:
                    raise
                raise InputError(f"{file.name}: {error}") from error
            row[...] = pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels
        return rows if preprocessing is None else preprocessing.raw(rows)

    return Source((len(files), *data_shape), read)


def _files_of(folder: Path) -> list[Path]:
    """The images of a folder in the order of their names; what is hidden is none of them."""
    from ..images import is_image_name

    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for file in files:
        if file.is_dir():
            raise InputError(f"holds a folder, {file.name}; give the folders with the images themselves")
        if not is_image_name(file):
            raise InputError(f"holds {file.name}, which is no image; a folder may hold images only")
    if not files:
        raise InputError("is an empty folder; expected images in it")
    return files
