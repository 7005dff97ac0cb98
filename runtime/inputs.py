"""What callers hand in, checked and brought into the graphs' form: float32 or int64, contiguous, `(batch, ...)`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .model_spec import ModelSpec

FloatArray = NDArray[np.float32]

FLOAT_BYTES = (4, 8)
MOST = 2**40
"""More of anything is a mistake: the largest machines hold a part of it in float32."""
FLOAT32 = np.dtype(np.float32)
MANY = 2**15
"""So many values that to look at all of them takes longer than to begin."""
LARGEST = (2 - 2**-23) * 2.0**127
"""Of float32."""


def labels(y: ArrayLike | None, batch: int, model: ModelSpec) -> dict[str, NDArray[Any]]:
    """Return `y` as int64, shape `(batch,)`, by name; nothing where the model sees no labels.

    Raises:
        InputError: `y` is missing, is not wanted, or does not fit.
    """
    if not model.num_classes:
        if y is not None:
            raise InputError("y must not be given: this model sees no labels")
        return {}
    if y is None:
        raise InputError(f"y is needed: this model sees labels, integers from 0 to {model.num_classes - 1}")
    return {"y": choices("y", y, batch, model.num_classes)}


def choices(name: str, value: ArrayLike, batch: int, num_choices: int) -> NDArray[np.int64]:
    """Return integers below `num_choices`, int64, shape `(batch,)`; a single one stands for all rows.

    Raises:
        InputError: `value` has another shape or dtype, or is out of range.
    """
    array = array_of(name, value)
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} must be integers, got dtype {array.dtype}")
    if array.shape not in ((), (batch,)):
        raise InputError(f"{name} must be one integer or have shape ({batch},), got {array.shape}")
    if array.size and not 0 <= array.min() <= array.max() < num_choices:
        raise InputError(f"{name} must be from 0 to {num_choices - 1}, got {array.min()} to {array.max()}")
    return np.array(np.broadcast_to(array, (batch,)), np.int64, order="C")


def latents(z: ArrayLike, z_dim: int) -> FloatArray:
    """Return `z` as float32, shape `(batch, z_dim)`.

    Raises:
        InputError: `z` has another shape, another dtype, or values that are not finite.
    """
    return _finite_rows("z", z, (None, z_dim))


def noise(eps: ArrayLike, *shape: int) -> FloatArray:
    """Return `eps` as float32 of a shape.

    Raises:
        InputError: `eps` has another shape, another dtype, or values that are not finite.
    """
    return _finite_rows("eps", eps, shape)


def places(out: FloatArray | None, batch: int, model: ModelSpec) -> dict[str, FloatArray] | None:
    """Return where a graph is to write its outputs, by name: `out` for `loc_img`; `None` where it makes all of them.

    Raises:
        InputError: `out` cannot take them as they are.
    """
    if out is None:
        return None
    if not isinstance(out, np.ndarray):
        raise InputError(f"out must be a NumPy array, got {type(out).__name__}")
    if _is_masked(out):
        raise InputError("out must not be a masked array; give the array under it, out.data")
    shape = (batch, model.data_dim)
    flags = out.flags
    if out.dtype != FLOAT32 or out.shape != shape or not (flags.c_contiguous and flags.aligned and flags.writeable):
        faults = ["not contiguous"] * (not flags.c_contiguous) + ["not aligned"] * (not flags.aligned)
        faults += ["read-only"] * (not flags.writeable)
        got = ", ".join([f"{out.dtype} of shape {out.shape}", *faults])
        raise InputError(f"out must be float32 of shape {shape}, C-contiguous, aligned and writable, got {got}")
    return {"loc_img": out}


def apart(given: dict[str, NDArray[Any]], out: FloatArray | None) -> dict[str, NDArray[Any]]:
    """Return a graph's inputs, copied where `out` lies over them: a part of a result is written before all is read."""
    if out is None:
        return given
    return {name: array.copy() if np.may_share_memory(array, out) else array for name, array in given.items()}


def count(name: str, value: int, most: int | None = None) -> int:
    """Return `value` as a number of things.

    Raises:
        InputError: It is not an integer, below 0, or above `most`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InputError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 0:
        raise InputError(f"{name} must not be negative, got {value}")
    if most is not None and value > most:
        raise InputError(f"{name} must be at most {most}, got {value}")
    return int(value)


def number(name: str, value: float) -> float:
    """Return `value` as a number; NaN is one too.

    Raises:
        InputError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(f"{name} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError as error:
        raise InputError(f"{name} must be a number that a float holds, got a larger one") from error


def vector(name: str, value: ArrayLike) -> FloatArray:
    """Return `value` as float32, shape `(length,)`.

    Raises:
        InputError: It has another number of axes, another dtype, or values that are not finite.
    """
    array = array_of(name, value)
    if array.ndim != 1:
        raise InputError(f"{name} must have shape (length,), got {array.shape}")
    if array.dtype.kind in "iu":
        array = array.astype(np.float32)
    return finite(name, array)


def _finite_rows(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> FloatArray:
    """Return `value` as float32 of a shape; `None` in it is a batch of any size."""
    if is_ready(value) and value.shape == shape and value.size and all_within(value, -LARGEST, LARGEST):
        return value
    array = array_of(name, value)
    if array.ndim != len(shape) or any(size not in (None, got) for size, got in zip(shape, array.shape, strict=True)):
        expected = ", ".join("batch" if size is None else str(size) for size in shape)
        remedy = f"; add a batch axis with {name}[None]" if array.shape == shape[1:] else ""
        raise InputError(f"{name} must have shape ({expected}), got {array.shape}{remedy}")
    return finite(name, array)


def finite(name: str, array: NDArray[Any]) -> FloatArray:
    """Return floats as contiguous float32.

    Raises:
        InputError: It holds other than floats, or values that are not finite.
    """
    if array.dtype.kind != "f" or array.dtype.itemsize not in FLOAT_BYTES:
        raise InputError(f"{name} must be float32 or float64, got dtype {array.dtype}")
    values = float32(array)
    if values.size and not all_within(values, -LARGEST, LARGEST):
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise InputError(f"{name} must be finite, got NaN or infinity in row {row}")
    return values


def all_within(values: FloatArray, low: float, high: float) -> bool:
    """Whether all values, one at least and contiguous, lie from `low` to `high`; NaN does not.

    `argmin` and `argmax`, which stop at NaN, begin in half the time of a reduction; in a batch of one that counts. In a
    large one it is one look less that counts: read as unsigned integers, positive floats are in their own order, and
    what is negative or NaN comes after them.
    """
    if low == 0 and values.size >= MANY and 0 < values.item(values.view(np.uint32).argmax()) <= high:
        return True
    return low <= values.item(values.argmin()) and values.item(values.argmax()) <= high


def is_ready(value: ArrayLike) -> TypeGuard[FloatArray]:
    """Whether a graph takes a value as it is, but for its shape and numbers: most are, and need no closer look."""
    return type(value) is np.ndarray and value.dtype is FLOAT32 and _is_laid_out(value)


def _is_laid_out(array: NDArray[Any]) -> bool:
    """Whether the values lie one behind the other, each where a processor wants it: ONNX Runtime looks at neither."""
    flags = array.flags
    return flags.c_contiguous and flags.aligned


def float32(array: NDArray[Any]) -> FloatArray:
    """Return floats as contiguous float32; what it cannot hold becomes infinite, which the caller refuses."""
    if array.dtype == FLOAT32:
        return array if _is_laid_out(array) else array.copy()
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32)


def array_of(name: str, value: ArrayLike) -> NDArray[Any]:
    """Return what a caller handed in as an array.

    Raises:
        InputError: It is no array of numbers.
    """
    if _is_masked(value):
        raise InputError(f"{name} must not be a masked array; fill what is masked with {name}.filled(...)")
    try:
        array = np.asarray(value)
    except Exception as error:  # rows of different lengths, tensors that need detaching, what other libraries think of
        raise InputError(f"{name} must be an array of numbers, got {type(value).__name__}: {error}") from error
    if isinstance(value, (list, tuple)) and _holds_masked(value):
        raise InputError(f"{name} must not hold masked arrays; fill what is masked with filled(...)")
    if array.dtype == object:
        raise InputError(f"{name} must be an array of numbers, got {type(value).__name__} with other content")
    return array


def _is_masked(value: object) -> bool:
    masked = sys.modules.get("numpy.ma")  # NumPy loads it at its first use, for longer than a model takes to load
    return masked is not None and isinstance(value, masked.MaskedArray)


def _holds_masked(values: Sequence[Any]) -> bool:
    """Whether there are masked arrays in lists, whose masks NumPy would drop."""
    return any(_holds_masked(value) if isinstance(value, (list, tuple)) else _is_masked(value) for value in values)
