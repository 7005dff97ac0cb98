"""Cutting and joining a stream of rows into batches, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import inputs as _inputs
from .errors import InputError
from .noise import Noise, stream_of

FloatArray = NDArray[np.float32]
Rows: TypeAlias = "NDArray[Any]"
Check: TypeAlias = Callable[[Rows], Rows]

BLOCK_ROWS = 1024
"""Rows whose noise is drawn at once, whatever the batch size: a multiple of 16, so that blocks join as one draw."""


class RowNoise:
    """Standard normal noise row by row, drawn in blocks of a fixed size."""

    def __init__(self, seed: int | Noise, z_dim: int) -> None:
        self._stream = stream_of(seed)
        self._z_dim = z_dim
        self._left = np.empty((0, z_dim), np.float32)

    def next_rows(self, count: int) -> FloatArray:
        """Return the noise of the next rows, float32, shape `(count, z_dim)`."""
        parts = [self._left]
        drawn = len(self._left)
        while drawn < count:
            parts.append(self._stream.standard_normal((BLOCK_ROWS, self._z_dim)))
            drawn += BLOCK_ROWS
        rows = np.concatenate(parts)
        self._left = rows[count:].copy()
        return rows[:count]


def row_batches(name: str, stream: NDArray[Any] | Iterable[ArrayLike], batch_size: int, check: Check) -> Iterator[Rows]:
    """Cut an array, or cut and join a stream of arrays, into checked batches.

    Args:
        name: The argument's, for messages.
        stream: An array with a batch axis, or an iterable of such.
        batch_size: Rows in a batch; the last one may have fewer.
        check: Brings rows into one dtype and shape, or raises.

    Raises:
        InputError: It is neither; or a check fails, which is raised when its batch is reached.
    """
    if not isinstance(stream, np.ndarray):
        return _joined(_parts(name, stream), batch_size, check)
    if stream.ndim == 0:
        raise InputError(f"{name} must be an array with a batch axis or an iterable of such, got a single number")
    return (check(stream[start : start + batch_size]) for start in range(0, len(stream), batch_size))


def paired(observations: Iterator[Rows], labels: Iterator[Rows]) -> Iterator[tuple[Rows, Rows]]:
    """Yield batches of observations with their labels.

    Raises:
        InputError: One of the two has more rows.
    """
    for observed in observations:
        label = next(labels, None)
        if label is None or len(label) != len(observed):
            raise InputError("x and y must have the same number of rows, and y has fewer")
        yield observed, label
    if next(labels, None) is not None:
        raise InputError("x and y must have the same number of rows, and y has more")


def _joined(parts: Iterable[Rows], batch_size: int, check: Check) -> Iterator[Rows]:
    waiting: list[Rows] = []
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


def _parts(name: str, stream: Iterable[ArrayLike]) -> Iterator[Rows]:
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
