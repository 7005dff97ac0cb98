"""What a command writes: arrays, tables and pictures. A file is written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .. import InputError
from ..files import replace_file, write_errors

FloatArray = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]


class _File(Protocol):
    """A file that is being written."""

    def append(self, **columns: NDArray[Any]) -> None:
        """Add the same number of rows to each column, by the same names each time."""

    def finish(self, others: Arrays) -> None:
        """Write the arrays that are not a row each, and close the file."""


@contextlib.contextmanager
def rows_file(path: Path, count: int, others: Arrays | None = None) -> Iterator[Callable[..., None]]:
    """Write columns of `count` rows part by part; memory does not grow with the rows, except for `.json`.

    Args:
        path: File to write. By its suffix: `.npy` holds the first column; `.npz` all columns and `others`; `.csv` a
            line a row, with a column for each value of a row; `.json` a list for each column, and `others`.
        count: Number of rows of all parts together.
        others: Arrays that are not a row each, by name.

    Yields:
        A function that takes the next rows of every column, by name; the same names each time.

    Raises:
        RuntimeError: Another number of rows was written.
    """
    kinds: dict[str, Callable[..., _File]] = {".npy": _Npy, ".npz": _Npz, ".csv": _Csv, ".json": _Json}
    with replace_file(path) as unfinished, contextlib.ExitStack() as stack:
        with write_errors(path):
            file = kinds[path.suffix.lower()](unfinished, count, stack)

        def append(**columns: NDArray[Any]) -> None:
            with write_errors(path):
                file.append(**columns)

        yield append
        with write_errors(path):
            file.finish(others or {})


def save_rows(path: Path, others: Arrays | None = None, **columns: NDArray[Any]) -> None:
    """Write whole columns as `rows_file` does."""
    with rows_file(path, len(next(iter(columns.values()))), others) as append:
        append(**columns)


def check_picture(data_shape: tuple[int, ...]) -> None:
    """Check, before anything is computed, that observations can be drawn.

    Raises:
        InputError: Observations of this shape are not images.
        InstallError: Pillow is not installed.
    """
    from ..images import can_draw  # needs Pillow

    if not can_draw(data_shape):
        raise InputError(f"a picture needs 1 or 3 channels, this model's data_shape is {data_shape}; write a .npy file")


def save_picture(path: Path, values: FloatArray, data_shape: tuple[int, ...], columns: int) -> None:
    """Draw images, shape `(count, data_dim)`, side by side."""
    from ..images import save_grid  # needs Pillow

    with replace_file(path) as unfinished, write_errors(path):
        save_grid(unfinished, values, data_shape, columns)


def save_pairs(path: Path, x: FloatArray, loc_img: FloatArray, data_shape: tuple[int, ...], columns: int) -> None:
    """Draw rows of observations, each above its reconstructions; shape `(count, data_dim)` both."""
    columns = min(columns, len(x))
    filler = np.zeros((-len(x) % columns, x.shape[1]), np.float32)
    rows = [np.concatenate([part, filler]).reshape(-1, columns, x.shape[1]) for part in (x, loc_img)]
    save_picture(path, np.stack(rows, axis=1).reshape(-1, x.shape[1]), data_shape, columns)


def _close(file: IO[Any]) -> None:
    """Close an unfinished file; errors don't matter, since it is deleted."""
    with contextlib.suppress(OSError):
        file.close()


class _Npy:
    """One array. Not memory-mapped: on a full disk that ends the process, where a write raises `OSError`."""

    def __init__(self, path: Path, count: int, stack: contextlib.ExitStack) -> None:
        self._file = path.open("wb")
        stack.callback(_close, self._file)
        self._count, self._done = count, 0

    def append(self, **columns: NDArray[Any]) -> None:
        rows = np.ascontiguousarray(next(iter(columns.values())))
        if self._done == 0:
            shape = (self._count, *rows.shape[1:])
            header = {"descr": npy.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(self._file, header)
        self._file.write(rows.data)
        self._done += len(rows)

    def finish(self, _others: Arrays) -> None:
        self._file.close()
        if self._done != self._count:
            raise RuntimeError(f"{self._done} rows were written, expected {self._count}")


class _Npz:
    """Several arrays: each goes to a `.npy` file in a temporary folder; at the end they are put into one archive."""

    def __init__(self, path: Path, count: int, stack: contextlib.ExitStack) -> None:
        self._path, self._count, self._stack = path, count, stack
        self._folder = path.with_name(f"{path.name}.d")
        shutil.rmtree(self._folder, ignore_errors=True)  # left by a command that was killed
        stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._files: dict[str, _Npy] = {}

    def append(self, **columns: NDArray[Any]) -> None:
        for name, rows in columns.items():
            if name not in self._files:
                file = self._folder / f"{len(self._files)}.npy"  # the names are those of sites, and may hold slashes
                self._files[name] = _Npy(file, self._count, self._stack)
            self._files[name].append(rows=rows)

    def finish(self, others: Arrays) -> None:
        for file in self._files.values():
            file.finish({})
        for index, array in enumerate(others.values(), len(self._files)):
            np.save(self._folder / f"{index}.npy", array, allow_pickle=False)
        with zipfile.ZipFile(self._path, "w") as archive:
            for index, name in enumerate((*self._files, *others)):
                entry = zipfile.ZipInfo(f"{name}.npy")  # without a time: the same arrays give the same bytes
                with (
                    (self._folder / f"{index}.npy").open("rb") as source,
                    archive.open(entry, "w", force_zip64=True) as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)


class _Csv:
    def __init__(self, path: Path, _count: int, stack: contextlib.ExitStack) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        stack.callback(_close, self._file)
        self._writer = csv.writer(self._file)
        self._has_header = False

    def append(self, **columns: NDArray[Any]) -> None:
        flat = {name: rows.reshape(len(rows), -1) for name, rows in columns.items()}
        if not self._has_header:
            self._writer.writerow(
                header
                for name, rows in columns.items()
                for header in ([name] if rows.ndim == 1 else [f"{name}[{i}]" for i in range(flat[name].shape[1])])
            )
            self._has_header = True
        for row in zip(*(rows.tolist() for rows in flat.values()), strict=True):
            self._writer.writerow(value for values in row for value in values)

    def finish(self, _others: Arrays) -> None:
        """Close the file; `others` are not a row each, so they have no column."""
        self._file.close()


class _Json:
    def __init__(self, path: Path, _count: int, _stack: contextlib.ExitStack) -> None:
        self._path = path
        self._columns: dict[str, list[Any]] = {}

    def append(self, **columns: NDArray[Any]) -> None:
        for name, rows in columns.items():
            self._columns.setdefault(name, []).extend(rows.tolist())

    def finish(self, others: Arrays) -> None:
        content = {**self._columns, **{name: array.tolist() for name, array in others.items()}}
        self._path.write_bytes(msgspec.json.encode(content) + b"\n")
