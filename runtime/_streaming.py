"""Many observations, a batch at a time: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _inputs
from ._core import Core
from ._errors import InputError
from ._noise import Noise, stream_of

FloatArray = NDArray[np.float32]

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
        if _inputs.count("batch_size", batch_size) == 0:
            raise InputError("batch_size must be at least 1, got 0")
        noise = None if seed is None else _RowNoise(seed, self.z_dim)
        if y is None or isinstance(y, (int, np.integer)):
            pairs: Iterable[tuple[NDArray[Any], ArrayLike | None]] = ((rows, y) for rows in _rows(x, batch_size))
        else:
            pairs = _pairs(x, y, batch_size)
        return self._reconstructed(pairs, noise)

    def _reconstructed(
        self, pairs: Iterable[tuple[NDArray[Any], ArrayLike | None]], noise: _RowNoise | None
    ) -> Iterator[FloatArray]:
        for x, y in pairs:
            yield self.reconstruct(x, y=y, eps=None if noise is None else noise.next_rows(len(x)))


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


def _rows(stream: NDArray[Any] | Iterable[ArrayLike], batch_size: int) -> Iterator[NDArray[Any]]:
    """Cut an array, or join and cut a stream of arrays, into batches."""
    if isinstance(stream, np.ndarray):
        for start in range(0, len(stream), batch_size):
            yield stream[start : start + batch_size]
        return
    waiting: list[NDArray[Any]] = []
    count = 0
    for part in stream:
        array = np.asarray(part)
        waiting.append(array)
        count += len(array)
        while count >= batch_size:
            joined = np.concatenate(waiting)
            yield joined[:batch_size]
            waiting, count = [joined[batch_size:]], count - batch_size
    if count:
        yield np.concatenate(waiting)


def _pairs(
    x: NDArray[Any] | Iterable[ArrayLike], y: NDArray[Any] | Iterable[ArrayLike], batch_size: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Batches of observations with their labels."""
    labels = _rows(y, batch_size)
    for observed in _rows(x, batch_size):
        label = next(labels, None)
        if label is None or len(label) != len(observed):
            raise InputError("x and y must have as many rows, and y has fewer")
        yield observed, label
    if next(labels, None) is not None:
        raise InputError("x and y must have as many rows, and y has more")
