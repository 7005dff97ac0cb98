"""What callers hand in, checked and brought into the graphs' form: float32, contiguous, `(batch, ...)`."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._errors import InputError
from ._model_spec import ModelSpec

FloatArray = NDArray[np.float32]

_FLOAT_BYTES = (4, 8)
_FLOAT32, _UINT32, _UINT8 = np.dtype(np.float32), np.dtype(np.uint32), np.dtype(np.uint8)
_INFINITY = float("inf")
_ONE_AS_INTEGER = int(np.float32(1).view(np.uint32))


def observations(x: ArrayLike, model: ModelSpec) -> FloatArray:
    """Return `x` as float32, in [0, 1] where the model needs it, shape `(batch, data_dim)`.

    Raises:
        InputError: `x` has another shape, another dtype, holds NaN, or values out of range.
    """
    shapes = _observation_shapes(model.data_shape)
    if _is_ready(x) and x.shape[1:] == shapes[0] and model.unit_interval and x.size and _in_unit_interval(x):
        return x
    array = _array("x", x)
    if array.shape[1:] not in shapes or array.ndim < 2:
        expected = " or ".join(_shape_text(shape) for shape in shapes)
        remedy = "; add a batch axis with x[None]" if array.shape in shapes else ""
        raise InputError(f"x must have shape {expected}, got {array.shape}{remedy}")
    array = array.reshape(len(array), *shapes[0])
    if array.dtype == _UINT8:
        return array.astype(np.float32) / np.float32(255)
    if not model.unit_interval:
        return _finite("x", array)
    if array.dtype.kind != "f" or array.dtype.itemsize not in _FLOAT_BYTES:
        raise InputError(f"x must be float32 or float64 in [0, 1], or uint8 in [0, 255], got dtype {array.dtype}")
    values = _float32(array)
    if values.size and not _in_unit_interval(values):
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
    pass says yes. Only when it does not, two passes decide, because -0.0 has a sign too. `argmax` is that pass, because
    a reduction takes twice as long to begin, and in a batch of one that is what counts.
    """
    bits = values.view(_UINT32)
    if bits.item(bits.argmax()) <= _ONE_AS_INTEGER:
        return True
    return bool(values.min() >= 0 and values.max() <= 1)


def _all_finite(values: FloatArray) -> bool:
    """Whether there is neither NaN nor infinity; `argmin` and `argmax` stop at NaN."""
    return -_INFINITY < values.item(values.argmin()) <= values.item(values.argmax()) < _INFINITY


def given(x: ArrayLike, y: ArrayLike | None, model: ModelSpec) -> dict[str, NDArray[Any]]:
    """Return what a call gives the encoder, by name: `x`, and `y` where the model sees labels.

    Raises:
        InputError: One of them does not fit.
    """
    observed = observations(x, model)
    if y is None and not model.num_classes:
        return {"x": observed}
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


def places(out: FloatArray | None, batch: int, model: ModelSpec) -> dict[str, FloatArray] | None:
    """Return where a graph is to write its outputs, by name: `out` for `loc_img`; `None` where it makes all of them.

    Raises:
        InputError: `out` cannot take them as they are.
    """
    if out is None:
        return None
    if not isinstance(out, np.ndarray):
        raise InputError(f"out must be a NumPy array, got {type(out).__name__}")
    shape = (batch, model.data_dim)
    if out.dtype != _FLOAT32 or out.shape != shape or not (out.flags.c_contiguous and out.flags.writeable):
        faults = ["not contiguous"] * (not out.flags.c_contiguous) + ["read-only"] * (not out.flags.writeable)
        got = ", ".join([f"{out.dtype} of shape {out.shape}", *faults])
        raise InputError(f"out must be float32 of shape {shape}, C-contiguous and writable, got {got}")
    return {"loc_img": out}


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
    if _is_ready(value) and value.shape == shape and value.size and _all_finite(value):
        return value
    array = _array(name, value)
    if array.ndim != len(shape) or any(size not in (None, got) for size, got in zip(shape, array.shape, strict=True)):
        expected = ", ".join("batch" if size is None else str(size) for size in shape)
        remedy = f"; add a batch axis with {name}[None]" if array.shape == shape[1:] else ""
        raise InputError(f"{name} must have shape ({expected}), got {array.shape}{remedy}")
    return _finite(name, array)


def _finite(name: str, array: NDArray[Any]) -> FloatArray:
    if array.dtype.kind != "f" or array.dtype.itemsize not in _FLOAT_BYTES:
        raise InputError(f"{name} must be float32 or float64, got dtype {array.dtype}")
    values = _float32(array)
    if values.size and not _all_finite(values):
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise InputError(f"{name} must be finite, got NaN or infinity in row {row}")
    return values


def _is_ready(value: ArrayLike) -> TypeGuard[FloatArray]:
    """Whether a graph takes a value as it is, but for its shape and numbers: most are, and need no closer look."""
    return type(value) is np.ndarray and value.dtype is _FLOAT32 and value.flags.c_contiguous


def _float32(array: NDArray[Any]) -> FloatArray:
    """Return floats as contiguous float32; what it cannot hold becomes infinite, which the caller refuses."""
    if array.dtype == _FLOAT32:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32)


def _array(name: str, value: ArrayLike) -> NDArray[Any]:
    masked = sys.modules.get("numpy.ma")  # NumPy loads it at its first use, for longer than a model takes to load
    if masked is not None and isinstance(value, masked.MaskedArray):
        raise InputError(f"{name} must not be a masked array; fill what is masked with x.filled(...)")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths; tensors that need detaching
        raise InputError(f"{name} must be an array of numbers, got {type(value).__name__}: {error}") from error
    if array.dtype == object:
        raise InputError(f"{name} must be an array of numbers, got {type(value).__name__} with other content")
    return array


@functools.cache
def _observation_shapes(data_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The shapes that one observation may have: flat, as it is, and without the channel where there is but one."""
    shapes = [(math.prod(data_shape),), data_shape]
    if len(data_shape) == 3 and data_shape[0] == 1:
        shapes.append(data_shape[1:])
    return tuple(dict.fromkeys(shapes))


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"(batch, {', '.join(map(str, shape))})"
