"""What the command line reads and writes."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import InputError
from ._inputs import given
from ._manifest import ModelSpec

FloatArray = NDArray[np.float32]

_PAIR_COLUMNS, _PAIR_ROWS = 12, 3


def read_observations(
    paths: Sequence[Path], model: ModelSpec, y: int | None
) -> tuple[FloatArray, NDArray[np.int64] | None]:
    """Read images, `.npy` and `.npz` files as observations, and their labels where the model sees labels.

    Args:
        paths: The files, at least one.
        model: Choices and sizes.
        y: Label of all of them; `None` to take the labels from the files.

    Returns:
        float32, shape `(batch, data_dim)`; int64, shape `(batch,)`, or `None`.

    Raises:
        InputError: A file cannot be read or does not fit; the message names it.
    """
    parts = [_read_one(path, model, y) for path in paths]
    x = np.concatenate([part["x"] for part in parts])
    return x, np.concatenate([part["y"] for part in parts]) if model.num_classes else None


def save_pairs(path: Path, x: FloatArray, loc_img: FloatArray, data_shape: tuple[int, ...]) -> None:
    """Draw the first observations, each row above its reconstructions."""
    from .images import save_grid  # Pillow, which only pictures need

    x, loc_img = x[: _PAIR_COLUMNS * _PAIR_ROWS], loc_img[: _PAIR_COLUMNS * _PAIR_ROWS]
    columns = max(1, min(_PAIR_COLUMNS, len(loc_img)))
    filler = np.zeros((-len(loc_img) % columns, loc_img.shape[1]), np.float32)
    rows = [np.concatenate([part, filler]).reshape(-1, columns, loc_img.shape[1]) for part in (x, loc_img)]
    save_grid(path, np.stack(rows, axis=1).reshape(-1, loc_img.shape[1]), data_shape, columns)


def save_npz(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays by name.

    Raises:
        InputError: The file's name does not end in `.npz`.
    """
    if path.suffix.lower() != ".npz":
        raise InputError(f"--out must end in .npz, or .png for pictures, got {path}")
    np.savez(path, **arrays)  # type: ignore[arg-type]  # names are not options


def save_columns(path: Path, **columns: NDArray[Any]) -> None:
    """Write columns of one length, a row each, as `.csv` with a header or as `.npz`.

    Raises:
        InputError: The file's name ends in neither.
    """
    if path.suffix.lower() == ".npz":
        save_npz(path, **columns)
        return
    if path.suffix.lower() != ".csv":
        raise InputError(f"--out must end in .csv or .npz, got {path}")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def _read_one(path: Path, model: ModelSpec, y: int | None) -> dict[str, NDArray[Any]]:
    try:
        content = _load(path, model.data_shape)
        labels = content.get("y") if y is None and model.num_classes else y
        return given(content["x"], labels, model)
    except InputError as error:
        remedy = "; give --y, or a .npz file with an array y" if str(error).startswith("y is needed") else ""
        raise InputError(f"{path}: {error}{remedy}") from error


def _load(path: Path, data_shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """Read a file: `x`, and `y` where it holds one."""
    if path.suffix.lower() not in {".npy", ".npz"}:
        from .images import read_image  # Pillow, which only pictures need

        return {"x": read_image(path, data_shape)[None]}
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return {"x": content}
            names = list(content)
            if "x" in names:
                return {name: content[name] for name in ("x", "y") if name in names}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot be read: {error}") from error
    raise InputError(f"must hold an array x, got {', '.join(names) or 'nothing'}")
