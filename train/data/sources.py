"""Your own data: arrays in `.npy`, `.npz` and IDX files, and folders of image files."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgevae import InputError, Preprocessing
from edgevae.arrays import is_idx_name, open_idx, open_npy, open_npz
from edgevae.images import ImageHeader, is_image_name, read_image, read_image_header

from ..errors import DatasetError
from .rows import Rows, value_range

_CHANNELS = (1, 3)
_IDX_IMAGES, _IDX_LABELS = "images-idx3", "labels-idx1"
_LABELS_END = "-labels"
_LARGEST_LABEL = 2**63 - 1

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Observations, with labels if they were asked for.

    Args:
        path: The file or the folder.
        rows: The observations, shape `(num_rows, *data_shape)`.
        labels: Their classes, int64 from 0, shape `(num_rows,)`.
        class_names: The classes' names, in the order of their numbers; empty without names.
    """

    path: Path
    rows: Rows
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()


def is_array_name(path: Path) -> bool:
    """Return whether a file's name is one of an array."""
    return path.suffix.lower() in {".npy", ".npz"} or is_idx_name(path)


def open_array(path: Path, scale: tuple[float, float] | None, labels: bool) -> Source:
    """Open an array: rows `(n, features)`, or images `(n, h, w)`, `(n, h, w, 1 or 3)` or `(n, 1 or 3, h, w)`.

    Four axes that could be either are refused. A `.npy` file is mapped: rows are read when they are used, so it may be
    larger than the memory.

    Args:
        path: `.npy`, with labels in `<name>-labels.npy` beside it; `.npz` with `x`, and labels in `y`; or IDX, with
            labels in a file beside it, named as MNIST's.
        scale: The values that become 0 and 1.
        labels: Whether to read the labels too.

    Raises:
        DatasetError: It cannot be read, or holds no observations, values that are not numbers, or no labels.
    """
    if path.suffix.lower() == ".npy":
        labels_path = path.with_name(f"{path.stem}{_LABELS_END}{path.suffix}")
        if labels and not labels_path.is_file():
            raise DatasetError(
                f"{path} has no labels beside it: expected {labels_path.name}; or give a .npz file with x and y, or "
                "train without labels"
            )
        array, y = _read(open_npy, path), _read(open_npy, labels_path) if labels else None
    elif path.suffix.lower() == ".npz":
        array, y = _read_npz(path, labels)
        labels_path = path
    else:
        array = _read(open_idx, path)
        labels_path = _idx_labels(path) if labels else path
        y = _read(open_idx, labels_path) if labels else None
    stored, channels_last = _as_observations(path, _tensor(path, array))
    known = stored.dtype == torch.uint8 and scale is None  # every uint8 is in range: nothing to read
    ends = (0.0, 255.0) if known else value_range(stored, path)
    in_unit = ends[0] >= 0 and ends[1] <= 1
    preprocessing = Preprocessing(
        scale=scale, channels_last=channels_last, divide_uint8=known or scale is not None or in_unit
    )
    rows = Rows(stored, preprocessing, name=str(path), value_range=ends)
    return Source(path, rows, None if y is None else _labels_of(labels_path, y, len(rows)))


def _labels_of(path: Path, labels: NDArray[Any], num_rows: int) -> Tensor:
    """Return the labels in the file `path` as int64, after checking their number and their values."""
    if labels.shape != (num_rows,):
        raise DatasetError(f"{path} must hold a label for each of {num_rows} rows, got labels of shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        row, what = 0, "save them as integers"
        if labels.dtype.kind == "f":
            broken = np.flatnonzero(labels != np.floor(labels))  # NaN is equal to nothing
            row = int(broken[0]) if broken.size else 0
            what += "" if broken.size else ", with y.astype(int)"
        raise DatasetError(
            f"{path}: labels must be integers, got {labels[row]!s} in row {row} (counted from 0), dtype "
            f"{labels.dtype}; {what}"
        )
    for what, wrong in (("be negative", labels < 0), (f"be above {_LARGEST_LABEL}", labels > _LARGEST_LABEL)):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DatasetError(f"{path}: labels must not {what}, got {labels[row]} in row {row} (counted from 0)")
    return torch.from_numpy(labels.astype(np.int64))


def _as_observations(path: Path, stored: Tensor) -> tuple[Tensor, bool]:
    """Return the values as `(n, features)` or `(n, channels, h, w)`, not copied, and whether channels were last."""
    if stored.ndim < 2 or stored.ndim > 4 or stored.numel() == 0:
        raise DatasetError(
            f"{path} must hold rows (n, features) or images (n, height, width[, 1 or 3]), no size 0, got shape "
            f"{tuple(stored.shape)}"
        )
    if stored.ndim == 2:
        return stored, False
    if stored.ndim == 3:
        return stored.unsqueeze(1), False
    first, last = stored.shape[1] in _CHANNELS, stored.shape[3] in _CHANNELS
    if first == last:
        which = "both axis 1 and axis 3 could be" if first else "neither axis 1 nor axis 3 is one of"
        raise DatasetError(
            f"{path} must hold images with 1 or 3 channels, got shape {tuple(stored.shape)}, where {which} the "
            "channels; save grey images as (n, height, width), or anything as rows (n, features)"
        )
    return (stored, False) if first else (stored.permute(0, 3, 1, 2), True)


def _tensor(path: Path, array: NDArray[Any]) -> Tensor:
    """Return a tensor that shares the array's memory, which is never written to."""
    dtype = array.dtype
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or not dtype.isnative:
        raise DatasetError(
            f"{path} must hold numbers in this machine's byte order (uint8, integers, float16 to float64), got dtype "
            f"{dtype.str}; save it with x.astype(np.float32)"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def _read_npz(path: Path, labels: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    arrays, names = _read(open_npz, path, *("x", "y")[: 1 + labels])
    there = ", ".join(names) or "nothing"
    if "x" not in arrays:
        raise DatasetError(f"{path} must hold an array x, got {there}; save it with np.savez(path, x=..., y=...)")
    if labels and "y" not in arrays:
        raise DatasetError(f"{path} must hold labels, an array y, got {there}; add them, or train without labels")
    return arrays["x"], arrays.get("y")


def _read(reader: Callable[..., _T], path: Path, *arguments: Any) -> _T:
    try:
        return reader(path, *arguments)
    except InputError as error:
        raise DatasetError(f"{path} {error}") from error
    except (OSError, MemoryError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


def _idx_labels(path: Path) -> Path:
    """Return the file with the labels of an IDX file of images; either may be compressed."""
    name = path.name.removesuffix(".gz").replace(_IDX_IMAGES, _IDX_LABELS)
    if _IDX_IMAGES not in path.name:
        raise DatasetError(f"{path} must have {_IDX_IMAGES} in its name, so that its labels are found beside it")
    for beside in (path.with_name(name), path.with_name(f"{name}.gz")):
        if beside.is_file():
            return beside
    raise DatasetError(f"{path} has no labels beside it: expected {name}, plain or .gz; or train without labels")


def open_folder(path: Path, resize: tuple[int, int] | None, grey: bool, labels: bool) -> Source:
    """Read a folder of image files into memory, uint8, or float32 in [0, 1] where an image has 16 bits.

    The images are in the order of their names, folder by folder. They have one channel if all are grey or are converted
    to grey, and three otherwise: a grey image among coloured ones gets three equal channels.

    Args:
        path: Holds image files, or a folder of them for each class; names that begin with a dot are ignored.
        resize: Height and width to which all are resized; without it they must have one size.
        grey: Whether coloured images are converted to grey, before they are resized.
        labels: Whether to number the class folders, sorted by name, or by number if all names are numbers.

    Raises:
        DatasetError: The folder or a class is empty; a file is not an image, damaged, transparent, or of another size
            than the first; or labels are asked for, and there are no class folders.
    """
    names, files = _files_of(path)
    if labels and not names:
        raise DatasetError(f"{path} must hold a folder for each class, got images only; or train without labels")
    flat = [file for _, of_class in files for file in of_class]
    headers = [_image(read_image_header, file) for file in flat]
    channels = 1 if grey or all(header.is_grey for header in headers) else 3
    deep = [file for file, header in zip(flat, headers, strict=True) if header.is_16_bit]
    if deep and channels == 3:
        raise DatasetError(f"{deep[0]} is grey with 16 bits, and others have colours; give --grey, or convert it")
    if resize is None:
        _check_sizes(flat, headers)
    height, width = resize or (headers[0].height, headers[0].width)
    pixels = np.empty((len(flat), channels, height, width), np.float32 if deep else np.uint8)
    for row, file in zip(pixels, flat, strict=True):
        image = _image(read_image, file, row.shape, resize=resize is not None)
        row[...] = image / np.float32(255) if deep and image.dtype == np.uint8 else image
    preprocessing = Preprocessing(resize=resize, grey=grey)
    ends = (0.0, 1.0) if deep else (0.0, 255.0)
    rows = Rows(torch.from_numpy(pixels), preprocessing, name=str(path), value_range=ends)
    if not labels:
        return Source(path, rows)
    numbers = np.concatenate([np.full(len(of_class), names.index(name), np.int64) for name, of_class in files])
    return Source(path, rows, torch.from_numpy(numbers), names)


def _files_of(path: Path) -> tuple[tuple[str, ...], list[tuple[str, list[Path]]]]:
    """Return the class names, and the images of each class; without class folders no names, and all images together."""
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
    if not is_image_name(file):
        raise DatasetError(f"{file} is no image by its name; move it out of the folder")
    return file


def _check_sizes(files: Sequence[Path], headers: Sequence[ImageHeader]) -> None:
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        if (header.height, header.width) != (first.height, first.width):
            raise DatasetError(
                f"{file} is {header.height} high and {header.width} wide, and {files[0].name} {first.height} by "
                f"{first.width}; give --resize H,W, like --resize {first.height},{first.width}, to make all of one size"
            )


def _image(reader: Callable[..., _T], file: Path, *arguments: Any, **options: Any) -> _T:
    try:
        with file.open("rb") as opened:
            return reader(opened, *arguments, **options)
    except InputError as error:
        raise DatasetError(f"{file}: {error}") from error
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error}") from error
