"""What callers hand in, checked and brought into the graphs' form: float32, contiguous, `(batch, ...)`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._errors import InputError
from ._manifest import ModelSpec

FloatArray = NDArray[np.float32]

_FLOAT_BYTES = (4, 8)
_ONE_AS_INTEGER = np.float32(1).view(np.uint32)


def observations(x: ArrayLike, model: ModelSpec) -> FloatArray:
    """Return `x` as float32, in [0, 1] where the model needs it, shape `(batch, data_dim)`.

    Raises:
        InputError: `x` has another shape, another dtype, holds NaN, or values out of range.
    """
    array = _array("x", x)
    shapes = _observation_shapes(model)
    if array.shape[1:] not in shapes or array.ndim < 2:
        expected = " or ".join(_shape_text(shape) for shape in shapes)
        remedy = "; add a batch axis with x[None]" if array.shape in shapes else ""
        raise InputError(f"x must have shape {expected}, got {array.shape}{remedy}")
    array = array.reshape(len(array), model.data_dim)
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if not model.unit_interval:
        return _finite("x", array)
    if array.dtype.kind != "f" or array.dtype.itemsize not in _FLOAT_BYTES:
        raise InputError(f"x must be float32 or float64 in [0, 1], or uint8 in [0, 255], got dtype {array.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
        values = np.ascontiguousarray(array, np.float32)
    if not _in_unit_interval(values):
        if np.isnan(values).any():
            raise InputError(f"x must not hold NaN, got NaN in row {int(np.argwhere(np.isnan(values))[0, 0])}")
        raise InputError(
            f"x must be in [0, 1], got values from {values.min():g} to {values.max():g}; "
            "divide pixels of 0 to 255 by 255, or pass them as uint8"
        )
    return values


def _in_unit_interval(values: FloatArray) -> bool:
    """Whether all values lie in [0, 1].

    Read as unsigned integers, floats from 0 on are in order, and NaN, infinity and what has a sign come after them: one
    pass says yes. Only when it does not, two passes decide, because -0.0 has a sign too.
    """
    if values.size == 0 or values.view(np.uint32).max() <= _ONE_AS_INTEGER:
        return True
    return bool(values.min() >= 0 and values.max() <= 1)


def given(x: ArrayLike, y: ArrayLike | None, model: ModelSpec) -> dict[str, NDArray[Any]]:
    """Return what a call gives the encoder, by name: `x`, and `y` where the model sees labels.

    Raises:
        InputError: One of them does not fit.
    """
    observed = observations(x, model)
    return {"x": observed, **labels(y, len(observed), model)}


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
    array = _array(name, value)
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} must be integers, got dtype {array.dtype}")
    if array.shape not in ((), (batch,)):
        raise InputError(f"{name} must be one integer or have shape ({batch},), got {array.shape}")
    if array.size and not 0 <= array.min() <= array.max() < num_choices:
        raise InputError(f"{name} must be from 0 to {num_choices - 1}, got {array.min()} to {array.max()}")
    return np.ascontiguousarray(np.broadcast_to(array, (batch,)), np.int64)


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


def count(name: str, value: int) -> int:
    """Return `value` as a number of things.

    Raises:
        InputError: It is not an integer, or below 0.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InputError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 0:
        raise InputError(f"{name} must not be negative, got {value}")
    return int(value)


def vector(name: str, value: ArrayLike) -> FloatArray:
    """Return `value` as float32, shape `(length,)`.

    Raises:
        InputError: It has another number of axes, another dtype, or values that are not finite.
    """
    array = _array(name, value)
    if array.ndim != 1:
        raise InputError(f"{name} must have shape (length,), got {array.shape}")
    if array.dtype.kind in "iu":
        array = array.astype(np.float32)
    return _finite(name, array)


def _finite_rows(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> FloatArray:
    """Return `value` as float32 of a shape; `None` in it is a batch of any size."""
    array = _array(name, value)
    if array.ndim != len(shape) or any(size not in (None, got) for size, got in zip(shape, array.shape, strict=True)):
        expected = ", ".join("batch" if size is None else str(size) for size in shape)
        remedy = f"; add a batch axis with {name}[None]" if array.shape == shape[1:] else ""
        raise InputError(f"{name} must have shape ({expected}), got {array.shape}{remedy}")
    return _finite(name, array)


def _finite(name: str, array: NDArray[Any]) -> FloatArray:
    if array.dtype.kind != "f" or array.dtype.itemsize not in _FLOAT_BYTES:
        raise InputError(f"{name} must be float32 or float64, got dtype {array.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
        values = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise InputError(f"{name} must be finite, got NaN or infinity in row {row}")
    return values


def _array(name: str, value: ArrayLike) -> NDArray[Any]:
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name} must not be a masked array; fill what is masked with x.filled(...)")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths; tensors that need detaching
        raise InputError(f"{name} must be an array of numbers, got {type(value).__name__}: {error}") from error
    if array.dtype == object:
        raise InputError(f"{name} must be an array of numbers, got {type(value).__name__} with other content")
    return array


def _observation_shapes(model: ModelSpec) -> list[tuple[int, ...]]:
    """The shapes that one observation may have: flat, as it is, and without the channel where there is but one."""
    shapes = [(model.data_dim,), model.data_shape]
    if len(model.data_shape) == 3 and model.data_shape[0] == 1:
        shapes.append(model.data_shape[1:])
    return list(dict.fromkeys(shapes))


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"(batch, {', '.join(map(str, shape))})"
