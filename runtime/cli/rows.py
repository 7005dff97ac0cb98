"""All rows that a command is given, with their labels: checked at once, read a batch at a time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import inputs as _inputs
from ..errors import InputError
from ..latents import Latents
from ..model_spec import ModelSpec
from ..observations import Observations
from ..preprocessing import Preprocessing
from .sources import Source, open_array_source, open_observations_source, read_labels

FloatArray = NDArray[np.float32]


class Rows:
    """Rows of files, one file after the other.

    Args:
        sources: The files and what was opened there, at least one.
        convert: Checks what a file holds, and returns it as float32.
        model: Choices and sizes.
        y: Label of all of them; `None` to take the labels from elsewhere.
        labels: File with their labels; `None` to take those in the files.

    Raises:
        InputError: A file does not fit; the message names it.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Path, Source]],
        convert: Callable[[NDArray[Any]], FloatArray],
        model: ModelSpec,
        y: int | None,
        labels: Path | None,
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
        """Read them batch by batch: float32, shape `(size, ...)`, the last one smaller; int64 labels or `None`.

        Raises:
            InputError: Values do not fit; raised when their turn comes.
        """
        start = 0
        for rows in self._batches(size):
            yield rows, None if self.y is None else self.y[start : start + len(rows)]
            start += len(rows)

    def first(self, count: int) -> tuple[FloatArray, NDArray[np.int64] | None]:
        """Read the first rows, all of them if there are no more than `count`; at least one."""
        return next(self.batches(count))

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
        """Refuse another shape or dtype before anything is computed; no row shows it as well as all do."""
        try:
            self._convert(source.read(0, 0))
        except InputError:
            self._convert(source.read(0, source.shape[0]))
            raise

    def _labels(self, y: int | None, file: Path | None) -> NDArray[np.int64] | None:
        if y is not None and file is not None:
            raise InputError("--y and --labels were both given; give one of them")
        fit: Callable[..., dict[str, NDArray[Any]]] = functools.partial(_inputs.labels, model=self._model)
        if y is not None:
            return fit(y, self.count).get("y")
        if file is not None:
            with _naming(file):
                return fit(read_labels(file), self.count).get("y")
        if not self._model.num_classes:
            return None  # a file may hold labels that this model does not see
        found = []
        for path, source in self._sources:
            remedy = "; give --y, --labels, or a .npz file with an array y" if source.y is None else ""
            with _naming(path, remedy=remedy):
                found.append(fit(source.y, source.shape[0])["y"])
        return np.concatenate(found)


def open_observations(
    paths: Sequence[Path],
    model: ModelSpec,
    y: int | None,
    labels: Path | None,
    preprocessing: Preprocessing | None = None,
) -> Rows:
    """Open files and folders as observations, shape `(rows, data_dim)`, with labels where the model sees labels.

    They stay in the scale of `preprocessing`, as `Model` takes them; `Model.observations` returns what its graphs see.

    Raises:
        InputError: One cannot be read or does not fit; the message names it.
        OSError: One cannot be read.
    """
    sources = []
    for path in paths:
        with _naming(path):
            sources.append((path, open_observations_source(path, model.data_shape, preprocessing)))
    return Rows(sources, Observations(model, preprocessing).unscaled, model, y, labels)


def open_latents(path: Path, model: ModelSpec, y: int | None, labels: Path | None) -> Rows:
    """Open a `.npz` file with `z` or `z_loc`, or a `.npy` file, as latents, shape `(rows, z_dim)`.

    Where the file names their latent space, they know it.

    Raises:
        InputError: It cannot be read or does not fit; the message names it.
        OSError: It cannot be read.
    """
    with _naming(path):
        if path.suffix.lower() not in {".npy", ".npz"}:
            raise InputError("latents are read from .npy or .npz, like those that encode writes")
        source = open_array_source(path, ("z", "z_loc"))
    space = source.latent_space_id

    def convert(array: NDArray[Any]) -> FloatArray:
        z = _inputs.latents(array, model.z_dim)
        return z if space is None else Latents.of(z, space)

    return Rows([(path, source)], convert, model, y, labels)


def _joined(arrays: list[FloatArray]) -> FloatArray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)  # one keeps the latent space that it knows


@contextlib.contextmanager
def _naming(path: Path, start: int = 0, remedy: str = "") -> Iterator[None]:
    """Name the file in what goes wrong, and from which of its rows on those of the message are counted."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}{f', from row {start} on' if start else ''}: {error}{remedy}") from error
