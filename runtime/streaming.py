"""Many observations, a batch at a time: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import inputs as _inputs
from .core import Core
from .errors import InputError
from .noise import Noise, stream_of

FloatArray = NDArray[np.float32]
_Rows: TypeAlias = "NDArray[Any]"
_Check: TypeAlias = Callable[[_Rows], _Rows]

_BLOCK_ROWS = 1024
"""Rows whose noise is drawn at once, whatever the batch size: a multiple of 16, so that blocks join as one draw."""


class Streaming(Core):
    """The part of `Model` that takes more than fits into memory."""

    def reconstruct_batches(
        self,
        x: NDArray[Any] | Iterable[ArrayLike],
        batch_size: int = _BLOCK_ROWS,
        *,
        y: NDArray[Any] | Iterable[ArrayLike] | int | None = None,
        seed: int | Noise | None = None,
    ) -> Iterator[FloatArray]:
        """Reconstruct observations as they come.

        The noise of a row depends on the seed and on the row's place in the stream alone, not on how the stream is cut.

        Args:
            x: An array, also a memory-mapped one, of shapes as for `encode`; or an iterable of such arrays, each with
                any number of rows.
            batch_size: Rows in a result, at least 1; the last one may have fewer.
            y: Labels, for a conditional model: an array or an iterable as `x` is, or one for all rows.
            seed: Noise stream for z; without it there is none, and z is `z_loc`.

        Yields:
            `loc_img`, float32 in the units of the data, shape `(rows, data_dim)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range; raised when its turn comes.
        """
        batch_size = _inputs.count("batch_size", batch_size)
        if batch_size == 0:
            raise InputError("batch_size must be at least 1, got 0")
        noise = None if seed is None else _RowNoise(seed, self.z_dim)
        if isinstance(x, np.ndarray) and x.ndim == 1:
            self._checked(x)  # which says what is missing, of all of it
        observations = _rows("x", x, batch_size, self._checked)
        if y is None or isinstance(y, (int, np.integer)):
            pairs: Iterable[tuple[_Rows, ArrayLike | None]] = ((rows, y) for rows in observations)
        else:
            pairs = _pairs(observations, _rows("y", y, batch_size, self._checked_labels))
        return self._reconstructed(pairs, noise)

    def _reconstructed(
        self, pairs: Iterable[tuple[_Rows, ArrayLike | None]], noise: _RowNoise | None
    ) -> Iterator[FloatArray]:
        for x, y in pairs:
            yield self.reconstruct(x, y=y, eps=None if noise is None else noise.next_rows(len(x)))

    def _checked(self, x: _Rows) -> FloatArray:
        """Return rows in one dtype and shape, so that they can be joined with others that came in another."""
        return self._observations.unscaled(x)

    def _checked_labels(self, y: _Rows) -> NDArray[np.int64]:
        return _inputs.labels(y, len(y), self._spec)["y"]


class _RowNoise:
    """Standard normal noise row by row, drawn in blocks of a fixed size."""

    def __init__(self, seed: int | Noise, z_dim: int) -> None:
        self._stream = stream_of(seed)
        self._z_dim = z_dim
        self._left = np.empty((0, z_dim), np.float32)

    def next_rows(self, count: int) -> FloatArray:
        parts = [self._left]
        drawn = len(self._left)
        while drawn < count:
            parts.append(self._stream.standard_normal((_BLOCK_ROWS, self._z_dim)))
            drawn += _BLOCK_ROWS
        rows = np.concatenate(parts)
        self._left = rows[count:].copy()
        return rows[:count]


def _rows(name: str, stream: NDArray[Any] | Iterable[ArrayLike], batch_size: int, check: _Check) -> Iterator[_Rows]:
    """Cut an array, or cut and join a stream of arrays, into batches; what is joined is checked before."""
    if not isinstance(stream, np.ndarray):
        return _joined(_parts(name, stream), batch_size, check)
    if stream.ndim == 0:
        raise InputError(f"{name} must be an array with a batch axis or an iterable of such, got a single number")
    return (stream[start : start + batch_size] for start in range(0, len(stream), batch_size))


def _joined(parts: Iterable[_Rows], batch_size: int, check: _Check) -> Iterator[_Rows]:
    waiting: list[_Rows] = []
    count = 0
    for part in parts:
        rest = part
        while True:
            rows = check(rest[: batch_size - count])
            rest = rest[len(rows) :]
            waiting.append(rows)
            count += len(rows)
            if count == batch_size:
                yield np.concatenate(waiting)
                waiting, count = [], 0
            if not len(rest):
                break
        if waiting:  # the next part may come in the same memory
            waiting[-1] = waiting[-1].copy()
    if count:
        yield np.concatenate(waiting)


def _parts(name: str, stream: Iterable[ArrayLike]) -> Iterator[_Rows]:
    for part in _iterated(name, stream):
        array = _inputs.array_of(name, part)
        if array.ndim == 0:
            raise InputError(f"{name} must be an array or an iterable of arrays, got single numbers; make it an array")
        yield array


def _iterated(name: str, stream: Iterable[ArrayLike]) -> Iterator[ArrayLike]:
    try:
        return iter(stream)
    except TypeError as error:
        raise InputError(f"{name} must be an array or an iterable of arrays, got {type(stream).__name__}") from error


def _pairs(observations: Iterator[_Rows], labels: Iterator[_Rows]) -> Iterator[tuple[_Rows, _Rows]]:
    """Batches of observations with their labels."""
    for observed in observations:
        label = next(labels, None)
        if label is None or len(label) != len(observed):
            raise InputError("x and y must have as many rows, and y has fewer")
        yield observed, label
    if next(labels, None) is not None:
        raise InputError("x and y must have as many rows, and y has more")
