"""What a command reads: images, folders, arrays and IDX files as rows, with labels and file names."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .. import ArgumentSpec, InputError, Latents, Manifest, ModelSpec, Preprocessing, Program
from .. import inputs as _inputs
from ..arrays import is_idx_name, open_idx, open_npy, open_npz
from ..inputs import Observations
from ..program import checked_argument
from .terminal import printable

FloatArray = NDArray[np.float32]

_MAX_UNPACKED_BYTES = 2**30  # a compressed file is unpacked into memory; a plain one is mapped
_LATENT_SPACE_ID = "latent_space_id"


class Source(msgspec.Struct, frozen=True, eq=False):
    """Rows of one file, or of one folder of images.

    Args:
        shape: Shape of all rows, `(rows, ...)`.
        read: Reads the rows from a start up to a stop from the disk.
        y: Labels in the file, in the file's dtype.
        images: Where each row is an image file: those files.
        latent_space_id: The latent space that the file names.
        is_reference: Whether the file is a bundle's `reference.npz`, whose `x` was preprocessed at export.
    """

    shape: tuple[int, ...]
    read: Callable[[int, int], NDArray[Any]]
    y: NDArray[Any] | None = None
    images: Sequence[Path] = ()
    latent_space_id: str | None = None
    is_reference: bool = False


class Rows:
    """The rows of all inputs, one input after the other; shapes and labels checked at once, values read in batches.

    Args:
        sources: Paths and what was opened there, at least one.
        convert: Checks rows of a file, and returns them as the model takes them.
        model: Choices and sizes of the model.
        y: Label of every row; `None` to take the labels from elsewhere.
        labels: File with a label a row; `None` to take the labels in the input files.

    Raises:
        InputError: A file does not fit; the message names it.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Path, Source]],
        convert: Callable[[NDArray[Any]], NDArray[Any]],
        model: ModelSpec,
        y: int | None = None,
        labels: Path | None = None,
    ) -> None:
        self._sources, self._convert, self._model = sources, convert, model
        for path, source in sources:
            with _naming(path):
                self._check_shape(source)
        self.count = sum(source.shape[0] for _, source in sources)
        if self.count == 0:
            raise InputError(f"{', '.join(str(path) for path, _ in sources)}: expected at least one row, got none")
        self.y = self._labels(y, labels)

    def batches(self, size: int) -> Iterator[tuple[FloatArray, NDArray[np.int64] | None]]:
        """Yield float32 rows, shape `(size, ...)`, the last batch smaller, with int64 labels or `None`.

        Raises:
            InputError: Values do not fit; raised when their batch is read.
        """
        start = 0
        for rows in self._batches(size):
            yield rows, None if self.y is None else self.y[start : start + len(rows)]
            start += len(rows)

    def first(self, count: int) -> tuple[FloatArray, NDArray[np.int64] | None]:
        """Read the first rows: `count` of them, or all if there are fewer."""
        return next(self.batches(count))

    def file_column(self, size: int) -> Iterator[dict[str, NDArray[np.str_]]]:
        """Yield for each of the `batches` the column `file`: the path of each row's file, shape `(size,)`.

        The dictionaries are empty where all rows come from one array file: its name would say nothing.
        """
        if len(self._sources) == 1 and not self._sources[0][1].images:
            for _ in range(0, self.count, size):
                yield {}
            return
        names = (
            name
            for path, source in self._sources
            for name in (map(printable, source.images) if source.images else [printable(path)] * source.shape[0])
        )
        longest = max(len(printable(file)) for path, source in self._sources for file in source.images or [path])
        for start in range(0, self.count, size):
            count = min(size, self.count - start)
            yield {"file": np.fromiter(names, f"U{longest}", count)}

    def _batches(self, size: int) -> Iterator[FloatArray]:
        waiting: list[FloatArray] = []
        missing = size
        for path, source in self._sources:
            start, rows = 0, source.shape[0]
            while start < rows:
                stop = min(rows, start + missing)
                with _naming(path, start):
                    waiting.append(self._convert(source.read(start, stop)))
                start, missing = stop, missing - (stop - start)
                if missing == 0:
                    yield _joined(waiting)
                    waiting, missing = [], size
        if waiting:
            yield _joined(waiting)

    def _check_shape(self, source: Source) -> None:
        """Refuse a wrong shape or dtype before anything is computed; zero rows show it as well as all of them."""
        try:
            self._convert(source.read(0, 0))
        except InputError:
            self._convert(source.read(0, source.shape[0]))  # the message of the real rows names their shape
            raise

    def _labels(self, y: int | None, file: Path | None) -> NDArray[np.int64] | None:
        if y is not None and file is not None:
            raise InputError("--y and --labels were both given; give one of them")
        checked: Callable[..., dict[str, NDArray[Any]]] = functools.partial(_inputs.labels, model=self._model)
        if y is not None:
            return checked(y, self.count).get("y")
        if file is not None:
            with _naming(file):
                return checked(read_labels(file), self.count).get("y")
        if not self._model.num_classes:
            return None  # labels in the files are not an error: this model just doesn't read them
        found = []
        for path, source in self._sources:
            remedy = "; give --y, --labels, or a .npz file with an array y" if source.y is None else ""
            with _naming(path, remedy=remedy):
                found.append(checked(source.y, source.shape[0])["y"])
        return np.concatenate(found)


def open_observations(paths: Sequence[Path], manifest: Manifest, y: int | None, labels: Path | None) -> Rows:
    """Open files and folders as observations, shape `(rows, data_dim)`, with labels for a conditional model.

    The values stay as `Model` takes them, before preprocessing; `Model.observations` returns what its graphs take.

    Raises:
        InputError: One cannot be read or does not fit; the message names it.
        InstallError: One is an image, and Pillow is not installed.
        OSError: One cannot be read.
    """
    model, preprocessing = manifest.model, manifest.preprocessing
    sources = []
    for path in paths:
        with _naming(path):
            sources.append((path, _open_observations(path, model.data_shape, preprocessing)))
    return Rows(sources, Observations(model, preprocessing).unscaled, model, y, labels)


def open_latents(path: Path, model: ModelSpec, y: int | None, labels: Path | None) -> Rows:
    """Open a `.npz` file with `z` or `z_loc`, or a `.npy` file, as latents, shape `(rows, z_dim)`.

    They are `Latents` where the file names their latent space.

    Raises:
        InputError: It cannot be read or does not fit; the message names it.
        OSError: It cannot be read.
    """
    _check_of_latents(path)
    with _naming(path):
        source = _open_array(path, ("z", "z_loc"))
    space = source.latent_space_id

    def convert(array: NDArray[Any]) -> FloatArray:
        z = _inputs.latents(array, model.z_dim)
        return z if space is None else Latents.of(z, space)

    return Rows([(path, source)], convert, model, y, labels)


def open_arguments(paths: Sequence[Path], program: Program, names: Sequence[str] | None = None) -> dict[str, Rows]:
    """Open files as the arguments of a program, by name: `.npz` files with an array for each of them.

    Of a program with one argument also `.npy`, and images and IDX files, whose pixels from 0 to 255 become [0, 1].

    Args:
        paths: Files and folders, whose rows come one after the other.
        program: The program.
        names: Which of its arguments to open; by default all.

    Raises:
        InputError: One cannot be read or does not fit; the message names it.
        InstallError: One is an image, and Pillow is not installed.
        OSError: One cannot be read.
    """
    specs = [spec for spec in program.arguments if names is None or spec.name in names]
    if not specs:
        raise InputError("the program reads no arguments here; leave the file out")
    return _open_named(paths, program, specs)


def open_values(path: Path, program: Program) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Open an `.npz` file with what `Program.decode` takes, like those that `encode` writes: latents, and arguments.

    Where that is one array, it may be a `.npy` file.

    Raises:
        InputError: It cannot be read or does not fit; the message names it.
        OSError: It cannot be read.
    """
    _check_of_latents(path)
    latents, read = program.decoded, program.reads("decoder")
    arguments = [spec for spec in program.arguments if spec.name in read]
    rows = _open_named([path], program, [*latents, *arguments])
    return (
        {spec.name: rows[spec.name] for spec in latents},
        {spec.name: rows[spec.name] for spec in arguments},
    )


def _check_of_latents(path: Path) -> None:
    with _naming(path):
        if path.suffix.lower() not in {".npy", ".npz"}:
            raise InputError("latents are read from .npy or .npz, like those that encode writes")


def _open_named(paths: Sequence[Path], program: Program, specs: Sequence[ArgumentSpec]) -> dict[str, Rows]:
    sources: dict[str, list[tuple[Path, Source]]] = {spec.name: [] for spec in specs}
    for path in paths:
        with _naming(path):
            found = _open_arrays(path, specs)
            counts = {name: source.shape[0] for name, source in found.items()}
            if len(set(counts.values())) > 1:
                said = ", ".join(f"{name} {count}" for name, count in counts.items())
                raise InputError(f"the arrays must have the same number of rows, got {said}")
        for name, source in found.items():
            sources[name].append((path, source))
    model = program.manifest.model
    return {spec.name: Rows(sources[spec.name], functools.partial(checked_argument, spec), model) for spec in specs}


def _open_arrays(path: Path, specs: Sequence[ArgumentSpec]) -> dict[str, Source]:
    """Open one input as the arrays of these names."""
    names = [spec.name for spec in specs]
    if path.suffix.lower() == ".npz":
        arrays, there = open_npz(path, *names)
        if missing := [name for name in names if name not in arrays]:
            raise InputError(
                f"holds no {', '.join(missing)}; expected an array for each of {', '.join(names)}, got "
                f"{', '.join(there) or 'nothing'}"
            )
        return {name: _in_memory(arrays[name]) for name in names}
    if len(specs) > 1:
        raise InputError(f"must be an .npz file with an array for each of {', '.join(names)}")
    source = _open_observations(path, specs[0].shape, None)
    if is_idx_name(path):
        read = source.read
        source = msgspec.structs.replace(source, read=lambda start, stop: read(start, stop) / np.float32(255))
    return {names[0]: source}


def read_labels(path: Path) -> NDArray[Any]:
    """Return the labels in a `.npy` or IDX file.

    Raises:
        InputError: It cannot be read, or is of another kind.
        OSError: It cannot be read.
    """
    if is_idx_name(path):
        return open_idx(path, _MAX_UNPACKED_BYTES)
    if path.suffix.lower() != ".npy":
        raise InputError("labels are read from .npy, or from IDX (-ubyte, .idx, .gz)")
    source = _open_array(path, ("y",))
    return source.read(0, source.shape[0])


def _open_observations(path: Path, data_shape: tuple[int, ...], preprocessing: Preprocessing | None) -> Source:
    """Open one input. Images are resized as `preprocessing` says, and 0 to 255 becomes its range of values."""
    if path.is_dir():
        return _open_images(_images_in(path), data_shape, preprocessing, in_folder=True)
    if is_idx_name(path):
        idx = open_idx(path, _MAX_UNPACKED_BYTES)
        return _mapped(lambda: open_idx(path)) if isinstance(idx, np.memmap) else _in_memory(idx)
    if path.suffix.lower() in {".npy", ".npz"}:
        source = _open_array(path, ("x",))
        if preprocessing is None or not source.is_reference:
            return source
        raw = preprocessing.raw
        return msgspec.structs.replace(source, read=lambda start, stop: raw(source.read(start, stop)))
    return _open_images([path], data_shape, preprocessing, in_folder=False)


def _open_array(path: Path, names: Sequence[str]) -> Source:
    """Open the array of a `.npy` file, memory-mapped, or the first of some names in a `.npz` file."""
    if path.suffix.lower() == ".npy":
        return _mapped(lambda: open_npy(path))
    arrays, there = open_npz(path, *names, "y", _LATENT_SPACE_ID)
    found = next((name for name in names if name in arrays), None)
    if found is None:
        raise InputError(f"must hold an array {' or '.join(names)}, got {', '.join(there) or 'nothing'}")
    space = str(arrays[_LATENT_SPACE_ID]) if _LATENT_SPACE_ID in arrays else None
    is_reference = {"case", "z_loc"} <= set(there)
    return msgspec.structs.replace(
        _in_memory(arrays[found]), y=arrays.get("y"), latent_space_id=space, is_reference=is_reference
    )


def _in_memory(array: NDArray[Any]) -> Source:
    if array.ndim == 0:
        raise InputError("must hold rows, got a single value; add a batch axis with x[None]")
    return Source(array.shape, lambda start, stop: array[start:stop])


def _mapped(open_map: Callable[[], NDArray[Any]]) -> Source:
    """Return rows of a memory-mapped file, mapped again for each batch, so that pages do not stay in memory."""
    return msgspec.structs.replace(_in_memory(open_map()), read=lambda start, stop: open_map()[start:stop])


def _open_images(
    files: Sequence[Path], data_shape: tuple[int, ...], preprocessing: Preprocessing | None, *, in_folder: bool
) -> Source:
    """Open image files, one per row, as float32: 8-bit and 16-bit images may be mixed."""
    from ..images import read_image  # needs Pillow

    resize = preprocessing is not None and preprocessing.resize is not None

    def read(start: int, stop: int) -> NDArray[np.float32]:
        rows = np.empty((stop - start, *data_shape), np.float32)
        for row, file in zip(rows, files[start:stop], strict=True):
            try:
                pixels = read_image(file, data_shape, resize=resize)
            except InputError as error:
                if not in_folder:
                    raise
                raise InputError(f"{file.name}: {error}") from error
            row[...] = pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels
        return rows if preprocessing is None else preprocessing.raw(rows)

    return Source((len(files), *data_shape), read, images=files)


def _images_in(folder: Path) -> list[Path]:
    """List a folder's images by name, without hidden files."""
    from ..images import is_image_name  # needs Pillow

    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for file in files:
        if file.is_dir():
            raise InputError(f"holds a folder, {file.name}; give the folders with the images themselves")
        if not is_image_name(file):
            raise InputError(f"holds {file.name}, which is not an image; move it, a folder may hold images only")
    if not files:
        raise InputError("is an empty folder; expected images in it")
    return files


def _joined(arrays: list[FloatArray]) -> FloatArray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)  # a single one keeps its latent space


@contextlib.contextmanager
def _naming(path: Path, start: int = 0, remedy: str = "") -> Iterator[None]:
    """Put the file into the message of an error, and the row of the file at which the batch starts."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}{f', from row {start} on' if start else ''}: {error}{remedy}") from error
