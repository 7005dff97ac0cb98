"""Observations that callers hand in, checked and brought into the graphs' form: float32, `(batch, data_dim)`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .inputs import FLOAT_BYTES, all_within, array_of, finite, float32, is_ready, labels
from .model_spec import ModelSpec
from .preprocessing import Preprocessing

FloatArray = NDArray[np.float32]

_UINT8 = np.dtype(np.uint8)
_UNIT = (0.0, 1.0)


class Observations:
    """A model's observations: checked, and brought into its graphs' form.

    Args:
        model: The choices that a model is made of.
        preprocessing: What is done to its data, if anything.
    """

    def __init__(self, model: ModelSpec, preprocessing: Preprocessing | None) -> None:
        self._model = model
        self._preprocessing = preprocessing
        self._scale = None if preprocessing is None else preprocessing.scale
        self._low, self._high = (float(np.float32(end)) for end in self._scale or _UNIT)
        self._shapes = _shapes(model.data_shape)
        self._row_shape = self._shapes[0]
        self._taken_as_they_are = model.unit_interval and self._scale is None

    def given(self, x: ArrayLike, y: ArrayLike | None) -> dict[str, NDArray[Any]]:
        """Return what a call gives the encoder, by name: `x`, and `y` where the model sees labels.

        Raises:
            InputError: One of them does not fit.
        """
        observed = self.scaled(x)
        if y is None and not self._model.num_classes:
            return {"x": observed}
        return {"x": observed, **labels(y, len(observed), self._model)}

    def scaled(self, x: ArrayLike) -> FloatArray:
        """Return `x` as the graphs take it: float32, in [0, 1] where the model needs it, shape `(batch, data_dim)`.

        Raises:
            InputError: `x` has another shape, another dtype, holds NaN, or values out of range.
        """
        values = self.unscaled(x)
        return values if self._preprocessing is None else self._preprocessing.scaled(values)

    def unscaled(self, x: ArrayLike) -> FloatArray:
        """Return `x` checked, as float32 of shape `(batch, data_dim)`, and in the scale that callers use.

        Raises:
            InputError: `x` has another shape, another dtype, holds NaN, or values out of range.
        """
        if (
            self._taken_as_they_are
            and is_ready(x)
            and x.shape[1:] == self._row_shape
            and x.size
            and all_within(x, self._low, self._high)
        ):
            return x
        array = array_of("x", x)
        if self._preprocessing is not None:
            array = self._preprocessing.channels_first(array, self._model.data_shape)
        if array.shape[1:] not in self._shapes or array.ndim < 2:
            expected = " or ".join(_shape_text(shape) for shape in self._shapes)
            remedy = "; add a batch axis with x[None]" if array.shape in self._shapes else ""
            raise InputError(f"x must have shape {expected}, got {array.shape}{remedy}")
        array = array.reshape(len(array), *self._row_shape)
        if array.dtype == _UINT8 and self._scale is None:
            return array.astype(np.float32) / np.float32(255)
        if array.dtype.kind in "biu" and not self._taken_as_they_are:
            array = array.astype(np.float32)
        return self._in_range(array) if self._model.unit_interval else finite("x", array)

    def _in_range(self, array: NDArray[Any]) -> FloatArray:
        """Return `x` as float32, if all of it lies in [0, 1] or in the scale."""
        low, high = self._scale or _UNIT
        expected = f"[{low:g}, {high:g}]"
        if array.dtype.kind != "f" or array.dtype.itemsize not in FLOAT_BYTES:
            kinds = (
                f"numbers in {expected}" if self._scale else f"float32 or float64 in {expected}, or uint8 in [0, 255]"
            )
            raise InputError(f"x must be {kinds}, got dtype {array.dtype}")
        values = float32(array)
        if values.size and not all_within(values, self._low, self._high):
            if np.isnan(values).any():
                raise InputError(f"x must not hold NaN, got NaN in row {int(np.argwhere(np.isnan(values))[0, 0])}")
            divide = "divide pixels of 0 to 255 by 255, or pass them as uint8"
            remedy = "the model was fitted to these" if self._scale else divide
            raise InputError(f"x must be in {expected}, got values from {values.min():g} to {values.max():g}; {remedy}")
        return values


def _shapes(data_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The shapes that one observation may have: flat, as it is, and without the channel where there is but one."""
    shapes = [(math.prod(data_shape),), data_shape]
    if len(data_shape) == 3 and data_shape[0] == 1:
        shapes.append(data_shape[1:])
    return tuple(dict.fromkeys(shapes))


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"(batch, {', '.join(map(str, shape))})"
