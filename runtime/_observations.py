"""Observations that callers hand in, checked and brought into the graphs' form: float32, `(batch, data_dim)`."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._errors import InputError
from ._inputs import FLOAT_BYTES, array_of, finite, float32, is_ready, labels
from ._model_spec import ModelSpec
from ._preprocessing import PreprocessingSpec

FloatArray = NDArray[np.float32]

_UINT32, _UINT8 = np.dtype(np.uint32), np.dtype(np.uint8)
_ONE_AS_INTEGER = int(np.float32(1).view(np.uint32))
_UNIT = (0.0, 1.0)


def given(
    x: ArrayLike, y: ArrayLike | None, model: ModelSpec, preprocessing: PreprocessingSpec | None
) -> dict[str, NDArray[Any]]:
    """Return what a call gives the encoder, by name: `x`, and `y` where the model sees labels.

    Raises:
        InputError: One of them does not fit.
    """
    observed = observations(x, model, preprocessing)
    if y is None and not model.num_classes:
        return {"x": observed}
    return {"x": observed, **labels(y, len(observed), model)}


def observations(x: ArrayLike, model: ModelSpec, preprocessing: PreprocessingSpec | None) -> FloatArray:
    """Return `x` as the graphs take it: float32, in [0, 1] where the model needs it, shape `(batch, data_dim)`.

    Raises:
        InputError: `x` has another shape, another dtype, holds NaN, or values out of range.
    """
    values = unscaled(x, model, preprocessing)
    return values if preprocessing is None else preprocessing.scaled(values)


def unscaled(x: ArrayLike, model: ModelSpec, preprocessing: PreprocessingSpec | None) -> FloatArray:
    """Return `x` checked, as float32 of shape `(batch, data_dim)`, and in the scale that callers use.

    Raises:
        InputError: `x` has another shape, another dtype, holds NaN, or values out of range.
    """
    scale = None if preprocessing is None else preprocessing.scale
    shapes = _observation_shapes(model.data_shape)
    unit = model.unit_interval and scale is None
    if unit and is_ready(x) and x.shape[1:] == shapes[0] and x.size and _in_unit_interval(x):
        return x
    array = array_of("x", x)
    if preprocessing is not None:
        array = preprocessing.channels_first(array, model.data_shape)
    if array.shape[1:] not in shapes or array.ndim < 2:
        expected = " or ".join(_shape_text(shape) for shape in shapes)
        remedy = "; add a batch axis with x[None]" if array.shape in shapes else ""
        raise InputError(f"x must have shape {expected}, got {array.shape}{remedy}")
    array = array.reshape(len(array), *shapes[0])
    if array.dtype == _UINT8 and scale is None:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind in "biu" and (scale is not None or not model.unit_interval):
        array = array.astype(np.float32)
    return _within(array, scale or _UNIT) if model.unit_interval else finite("x", array)


def _within(array: NDArray[Any], scale: tuple[float, float]) -> FloatArray:
    """Return `x` as float32, if all of it lies in the scale."""
    unit = scale == _UNIT
    expected = f"[{scale[0]:g}, {scale[1]:g}]"
    if array.dtype.kind != "f" or array.dtype.itemsize not in FLOAT_BYTES:
        kinds = f"float32 or float64 in {expected}, or uint8 in [0, 255]" if unit else f"numbers in {expected}"
        raise InputError(f"x must be {kinds}, got dtype {array.dtype}")
    values = float32(array)
    if values.size and not (_in_unit_interval(values) if unit else _in_scale(values, scale)):
        if np.isnan(values).any():
            raise InputError(f"x must not hold NaN, got NaN in row {int(np.argwhere(np.isnan(values))[0, 0])}")
        remedy = "divide pixels of 0 to 255 by 255, or pass them as uint8" if unit else "the model was fitted to these"
        raise InputError(f"x must be in {expected}, got values from {values.min():g} to {values.max():g}; {remedy}")
    return values


def _in_scale(values: FloatArray, scale: tuple[float, float]) -> bool:
    return bool(np.float32(scale[0]) <= values.min() and values.max() <= np.float32(scale[1]))


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


@functools.cache
def _observation_shapes(data_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The shapes that one observation may have: flat, as it is, and without the channel where there is but one."""
    shapes = [(math.prod(data_shape),), data_shape]
    if len(data_shape) == 3 and data_shape[0] == 1:
        shapes.append(data_shape[1:])
    return tuple(dict.fromkeys(shapes))


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"(batch, {', '.join(map(str, shape))})"
