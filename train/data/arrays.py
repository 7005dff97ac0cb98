"""Arrays in files: NumPy's `.npy`, mapped and not read, its `.npz`, and MNIST's IDX."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DatasetError
from .idx import read_idx
from .preprocessing import Preprocessing
from .rows import Rows
from .source import Source, check_labels_of
from .values import value_range

_CHANNELS = (1, 3)
_IDX_ENDS = ("-ubyte", ".idx", "-ubyte.gz", ".idx.gz")
_IDX_IMAGES, _IDX_LABELS = "images-idx3", "labels-idx1"
_LABELS_END = "-labels"


def is_array_name(path: Path) -> bool:
    """Return whether a file's name is one of an array."""
    return path.suffix.lower() in {".npy", ".npz"} or path.name.lower().endswith(_IDX_ENDS)


def open_array(path: Path, scale: tuple[float, float] | None, labels: bool) -> Source:
    """Open an array: rows `(n, features)`, or images `(n, h, w)`, `(n, h, w, 1 or 3)` or `(n, 1 or 3, h, w)`.

    Where the four axes could mean both, it is refused. A `.npy` file is mapped: its rows are read when they are asked
    for, so it may be larger than the memory.

    Args:
        path: `.npy`, with labels in `<name>-labels.npy` beside it; `.npz` with `x`, and labels in `y`; or IDX, with
            labels in a file beside it that is named as MNIST's are.
        scale: Which values become 0 and 1.
        labels: Whether to read the labels too.

    Raises:
        DatasetError: It cannot be read, holds no observations, values that are no numbers, or no labels.
    """
    if path.suffix.lower() == ".npy":
        labels_path = path.with_name(f"{path.stem}{_LABELS_END}{path.suffix}")
        if labels and not labels_path.is_file():
            raise DatasetError(
                f"{path} has no labels beside it: expected {labels_path.name}; or give a .npz file with x and y, or "
                "train without labels"
            )
        array, y = _read_npy(path), _read_npy(labels_path) if labels else None
    elif path.suffix.lower() == ".npz":
        array, y = _read_npz(path, labels)
        labels_path = path
    else:
        array = read_idx(path)
        labels_path = _idx_labels(path) if labels else path
        y = read_idx(labels_path) if labels else None
    stored, channels_last = _as_observations(path, _tensor(path, array))
    known = stored.dtype == torch.uint8 and scale is None  # any uint8 will do, and none needs to be looked at
    ends = (0.0, 255.0) if known else value_range(stored, path)
    in_unit = ends[0] >= 0 and ends[1] <= 1
    preprocessing = Preprocessing(
        scale=scale, channels_last=channels_last, divide_uint8=known or scale is not None or in_unit
    )
    rows = Rows(stored, preprocessing, name=str(path), value_range=ends)
    return Source(path, rows, None if y is None else check_labels_of(labels_path, y, len(rows)))


def _as_observations(path: Path, stored: Tensor) -> tuple[Tensor, bool]:
    """Return the values as `(n, features)` or `(n, channels, h, w)`, not copied, and whether channels were last."""
    if stored.ndim < 2 or stored.ndim > 4 or stored.numel() == 0:
        raise DatasetError(
            f"{path} must hold rows (n, features) or images (n, height, width[, 1 or 3]), none of them 0, got shape "
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
    """A tensor on the array's own memory, which is only ever read."""
    dtype = array.dtype
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or not dtype.isnative:
        raise DatasetError(
            f"{path} must hold numbers in this machine's byte order (uint8, integers, float16 to float64), got dtype "
            f"{dtype.str}; save it with x.astype(np.float32)"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def _read_npy(path: Path) -> NDArray[Any]:
    # Read-only: memory that could be written to would have to fit into the machine's, even where it is mapped.
    with _read_errors(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise DatasetError(f"{path} is a .npz archive by its content; name it so")
    return array


def _read_npz(path: Path, labels: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    with _read_errors(path):
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise DatasetError(f"{path} is a .npy array by its content; name it so")
        with content:
            there = ", ".join(content.files) or "nothing"
            if "x" not in content:
                raise DatasetError(
                    f"{path} must hold an array x, got {there}; save it with np.savez(path, x=..., y=...)"
                )
            if labels and "y" not in content:
                raise DatasetError(
                    f"{path} must hold labels, an array y, got {there}; add them, or train without labels"
                )
            arrays = [content[name] for name in ("x", "y")[: 1 + labels]]
            if not all(isinstance(array, np.ndarray) for array in arrays):
                raise ValueError("one of its files is no array")
            return arrays[0], arrays[1] if labels else None


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:  # on damaged files NumPy and zipfile raise errors of many unrelated classes
        pickled = "pickle" in str(error) or "Python objects" in str(error)
        why = (
            "holds Python objects, as arrays of different shapes are saved, which could run any code when they are read"
            if pickled
            else f"got: {error}"
        )
        raise DatasetError(f"{path} cannot be read as an array of numbers, {why}; save it again") from error


def _idx_labels(path: Path) -> Path:
    """The file with the labels of an IDX file of images, plain or compressed as it may be."""
    name = path.name.removesuffix(".gz").replace(_IDX_IMAGES, _IDX_LABELS)
    if _IDX_IMAGES not in path.name:
        raise DatasetError(f"{path} must have {_IDX_IMAGES} in its name, so that its labels are found beside it")
    for beside in (path.with_name(name), path.with_name(f"{name}.gz")):
        if beside.is_file():
            return beside
    raise DatasetError(f"{path} has no labels beside it: expected {name}, plain or .gz; or train without labels")
