"""Checks of callers' arguments; arrays are returned as the graphs take them: float32 or int64, contiguous."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .model_spec import ModelSpec
from .preprocessing import Preprocessing

FloatArray = NDArray[np.float32]

MAX_COUNT = 2**40
"""Limit for rows, draws and values: no machine holds more."""
LARGE_SIZE = 2**15
"""Values from which a full scan costs more than the call's overhead."""
FLOAT32_MAX = float(np.finfo(np.float32).max)

_FLOAT32 = np.dtype(np.float32)
_UINT8 = np.dtype(np.uint8)
_UNIT = (0.0, 1.0)
_ROUNDING = 1e-4
"""Fraction of the range's width: a message calls values that lie outside by no more than this rounding errors."""
_READ_FIRST = {
    "x": "read the file first, with np.load, or an image with edgevae.images.read_image",
    "z": "read the file first, with edgevae.Latents.load",
}


class Observations:
    """Checks a model's observations, and converts them to the form that its graphs take.

    It accepts arrays of floats (and what `np.asarray` converts to such, like lists and tensors); uint8 pixels, or
    numbers if `preprocessing.divide_uint8` is false; booleans as 0 and 1; other integers if the model takes any range
    or `preprocessing` has a scale; and Pillow images of the model's size and colours.

    Args:
        model: The model's choices and sizes.
        preprocessing: What is done to its data, if anything.
    """

    def __init__(self, model: ModelSpec, preprocessing: Preprocessing | None) -> None:
        self._model = model
        self._preprocessing = preprocessing
        self._scale = None if preprocessing is None else preprocessing.scale
        self._divides_uint8 = self._scale is None and (preprocessing is None or preprocessing.divide_uint8)
        self._low, self._high = -FLOAT32_MAX, FLOAT32_MAX
        if model.unit_interval:
            self._low, self._high = (float(np.float32(end)) for end in self._scale or _UNIT)
        self._shapes = _row_shapes(model.data_shape)
        self._row_shape = self._shapes[0]

    def given(self, x: ArrayLike, y: ArrayLike | None) -> dict[str, NDArray[Any]]:
        """Return the encoder's inputs by name: `x`, and `y` if the model is conditional.

        Raises:
            InputError: One of them does not fit.
        """
        given: dict[str, NDArray[Any]] = {"x": self.scaled(x)}
        if y is not None or self._model.num_classes:
            given |= labels(y, len(given["x"]), self._model)
        return given

    def scaled(self, x: ArrayLike) -> FloatArray:
        """Return `x` as the graphs take it: float32, in [0, 1] if the model needs that, shape `(batch, data_dim)`.

        Raises:
            InputError: `x` has another shape, another dtype, holds NaN, or values out of range.
        """
        values = x if is_ready(x, self._row_shape, self._low, self._high) else self.unscaled(x)
        return values if self._preprocessing is None else self._preprocessing.scaled(values)

    def unscaled(self, x: ArrayLike) -> FloatArray:
        """Return `x` checked, as float32 of shape `(batch, data_dim)`, in the scale that callers use.

        Raises:
            InputError: `x` has another shape, another dtype, holds NaN, or values out of range.
        """
        array = array_of("x", _pixels(x, self._model.data_shape))
        if self._preprocessing is not None:
            array = self._preprocessing.channels_first(array, self._model.data_shape)
        if array.shape[1:] not in self._shapes or array.ndim < 2:
            raise InputError(self._wrong_shape(array.shape))
        array = array.reshape(len(array), *self._row_shape)
        if array.dtype == _UINT8 and self._divides_uint8:
            return array.astype(np.float32) / np.float32(255)
        values = self._as_float32(array)
        if values.size and not all_within(values, self._low, self._high):
            raise InputError(self._out_of_range(values))
        return values

    def _as_float32(self, array: NDArray[Any]) -> FloatArray:
        kind = array.dtype.kind
        takes_integers = self._scale is not None or not self._model.unit_interval
        if kind in "bf" or (kind in "iu" and takes_integers):
            return float32(array)
        expected = "numbers" if takes_integers else "floats in [0, 1], or uint8 pixels in [0, 255]"
        if self._scale is not None:
            expected += f" in [{self._scale[0]:g}, {self._scale[1]:g}]"
        remedy = ""
        if kind in "iu":
            remedy = (
                "; integers may mean either: pass pixels of 0 to 255 as np.asarray(x, np.uint8), and numbers in [0, 1] "
                "as np.asarray(x, np.float32)"
            )
        raise InputError(f"x must be {expected}, got dtype {array.dtype}{remedy}")

    def _wrong_shape(self, shape: tuple[int, ...]) -> str:
        data_shape = self._model.data_shape
        expected = " or ".join(_shape_text(known) for known in self._shapes[:3])
        remedy = ""
        if shape in self._shapes:
            remedy = "; add a batch axis with x[None]"
        elif len(data_shape) == 3:
            channels, *size = data_shape
            first, last = shape[1:2], shape[-1:]
            if len(shape) == 4 and channels > 1 and shape[1:] == (*size, channels):
                remedy = "; the channels come first: np.moveaxis(x, -1, 1)"
            elif len(shape) == 4 and channels == 1 and ([*shape[2:]] == size or [*shape[1:3]] == size):
                count = first[0] if [*shape[2:]] == size else last[0]
                if 2 <= count <= 4:
                    remedy = (
                        "; these are colour images and the model's are grey: make them grey first, as Pillow's "
                        "image.convert('L') does"
                    )
            elif channels == 3 and shape[1:] in {tuple(size), (1, *size), (*size, 1)}:
                remedy = "; these are grey images and the model's have 3 channels: repeat the channel"
            elif len(shape) == 4 and (first == (channels,) or last == (channels,)):
                remedy = f"; resize the images to {size[0]} high and {size[1]} wide"
        return f"x must have shape {expected}, got {shape}{remedy}"

    def _out_of_range(self, values: FloatArray) -> str:
        if np.isnan(values).any():
            row = _first_row(np.isnan(values))
            return f"x must not hold NaN, got NaN in row {row}; drop the row, or fill in what is missing"
        if not self._model.unit_interval:
            return f"x must be finite, got infinity in row {_first_row(np.isinf(values))}"
        low, high = self._scale or _UNIT
        least, most = values.min(), values.max()
        row = _first_row((values < self._low) | (values > self._high))
        slack = _ROUNDING * (high - low)
        if low - slack <= least and most <= high + slack:
            remedy = f"these look like rounding errors: np.clip(x, {low:g}, {high:g}) removes them"
        elif self._scale is not None:
            remedy = "the model was fitted to values in this range"
        elif -1 - _ROUNDING <= least < 0 and most <= 1 + _ROUNDING:
            remedy = "values in [-1, 1] become [0, 1] with (x + 1) / 2; scale them as the training data were"
        elif least >= 0 and most <= 255:
            remedy = "divide pixels of 0 to 255 by 255, or pass them as uint8"
        else:
            remedy = "scale them as the training data were"
        return (
            f"x must be in [{low:g}, {high:g}], got values from {_number_text(least)} to {_number_text(most)}, the "
            f"first outside in row {row}; {remedy}"
        )


def _row_shapes(data_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the accepted shapes of a row: flat, `data_shape`, and for grey images also without a channel, or last."""
    shapes = [(math.prod(data_shape),), data_shape]
    if len(data_shape) == 3 and data_shape[0] == 1:
        shapes += [data_shape[1:], (*data_shape[1:], 1)]
    return tuple(dict.fromkeys(shapes))


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"(batch, {', '.join(map(str, shape))})"


def _number_text(value: np.floating[Any]) -> str:
    """Return a number with six digits, or with more if six would change it."""
    short = f"{value:g}"
    return short if value.dtype.type(short) == value else str(value)


def _first_row(is_wrong: NDArray[np.bool_]) -> int:
    return int(np.argwhere(is_wrong)[0, 0])


def _pixels(x: Any, data_shape: tuple[int, ...]) -> Any:
    """Return a Pillow image, or a list of them, as pixels with a batch axis; anything else as it is.

    Raises:
        InputError: An image has another size or other colours than the model's.
    """
    pillow = sys.modules.get("PIL.Image")  # whoever has an image has loaded Pillow
    if pillow is None:
        return x
    images = x if isinstance(x, (list, tuple)) else [x]
    if not images or not all(isinstance(image, pillow.Image) for image in images):
        return x
    if len(data_shape) not in (2, 3) or (len(data_shape) == 3 and data_shape[0] not in (1, 3)):
        raise InputError(f"x must have rows of shape {data_shape}, which no image has")
    modes = ("RGB",) if len(data_shape) == 3 and data_shape[0] == 3 else ("L", "1")
    height, width = data_shape[-2:]
    for image in images:
        if image.mode not in modes:
            raise InputError(
                f"x must be an image of mode {modes[0]}, got mode {image.mode}; image.convert({modes[0]!r})"
            )
        if image.size != (width, height):
            got = f"{image.size[0]} wide and {image.size[1]} high"
            raise InputError(
                f"x must be an image {width} wide and {height} high, got {got}; image.resize(({width}, {height}))"
            )
    pixels = np.stack([np.asarray(image.convert("L" if image.mode == "1" else image.mode)) for image in images])
    return np.moveaxis(pixels, -1, 1) if modes == ("RGB",) else pixels


def labels(y: ArrayLike | None, batch: int, model: ModelSpec) -> dict[str, NDArray[Any]]:
    """Return `{"y": labels}`, int64, shape `(batch,)`; an empty dict if the model sees no labels.

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
    if num_choices > 1 and array.ndim == 2 and array.shape[1] == num_choices:
        raise InputError(
            f"{name} must be one integer or have shape ({batch},), got {array.shape}; one-hot labels become integers "
            f"with {name}.argmax(1)"
        )
    if array.dtype.kind not in "iu":
        remedy = f"; {name}.astype(np.int64) makes integers of them" if array.dtype.kind in "bf" and array.size else ""
        raise InputError(f"{name} must be integers, got dtype {array.dtype}{remedy}")
    if array.shape not in ((), (batch,)):
        remedy = f"; drop the last axis with {name}[:, 0]" if array.shape == (batch, 1) else ""
        raise InputError(f"{name} must be one integer or have shape ({batch},), got {array.shape}{remedy}")
    if array.size and not 0 <= array.min() <= array.max() < num_choices:
        raise InputError(f"{name} must be from 0 to {num_choices - 1}, got {array.min()} to {array.max()}")
    return np.array(np.broadcast_to(array, (batch,)), np.int64, order="C")


def latents(z: ArrayLike, z_dim: int) -> FloatArray:
    """Return `z` as float32, shape `(batch, z_dim)`.

    Raises:
        InputError: `z` has another shape, holds no numbers, or values that are not finite.
    """
    if is_ready(z, (z_dim,), -FLOAT32_MAX, FLOAT32_MAX):
        return z
    return _finite_rows("z", z, (None, z_dim))


def noise(eps: ArrayLike, *shape: int) -> FloatArray:
    """Return `eps` as float32 of a shape.

    Raises:
        InputError: `eps` has another shape, holds no numbers, or values that are not finite.
    """
    if is_ready(eps, shape[1:], -FLOAT32_MAX, FLOAT32_MAX) and len(eps) == shape[0]:
        return eps
    return _finite_rows("eps", eps, shape)


def check_buffer(out: FloatArray, shape: tuple[int, ...]) -> None:
    """Check that a graph can write an output of a shape into `out`.

    Raises:
        InputError: `out` is not float32, C-contiguous, aligned and writable, or has another shape.
    """
    if not isinstance(out, np.ndarray):
        raise InputError(f"out must be a NumPy array, got {type(out).__name__}")
    if _is_masked(out):
        raise InputError("out must not be a masked array; give the array under it, out.data")
    flags = out.flags
    if out.dtype != _FLOAT32 or out.shape != shape or not (flags.c_contiguous and flags.aligned and flags.writeable):
        faults = ["not contiguous"] * (not flags.c_contiguous) + ["not aligned"] * (not flags.aligned)
        faults += ["read-only"] * (not flags.writeable)
        got = ", ".join([f"{out.dtype} of shape {out.shape}", *faults])
        raise InputError(f"out must be float32 of shape {shape}, C-contiguous, aligned and writable, got {got}")


def copy_if_aliased(given: dict[str, NDArray[Any]], out: FloatArray) -> dict[str, NDArray[Any]]:
    """Return a graph's inputs, copied where they share memory with `out`, which is written while they are read."""
    return {name: array.copy() if np.may_share_memory(array, out) else array for name, array in given.items()}


def count(name: str, value: int, most: int | None = None) -> int:
    """Return `value` as a count.

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
    """Return `value` as a float; NaN is allowed.

    Raises:
        InputError: It is no number.
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
        InputError: It has another number of axes, holds no numbers, or values that are not finite.
    """
    array = array_of(name, value)
    if array.ndim != 1:
        raise InputError(f"{name} must have shape (length,), got {array.shape}")
    return finite(name, array)


def _finite_rows(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> FloatArray:
    """Return `value` as float32 of a shape; `None` in it is a batch of any size."""
    array = array_of(name, value)
    if array.ndim != len(shape) or any(size not in (None, got) for size, got in zip(shape, array.shape, strict=True)):
        expected = ", ".join("batch" if size is None else str(size) for size in shape)
        remedy = f"; add a batch axis with {name}[None]" if array.shape == shape[1:] else ""
        raise InputError(f"{name} must have shape ({expected}), got {array.shape}{remedy}")
    return finite(name, array)


def finite(name: str, array: NDArray[Any]) -> FloatArray:
    """Return numbers as contiguous float32.

    Raises:
        InputError: It holds other than floats and integers, or values that are not finite.
    """
    if array.dtype.kind not in "iuf":
        raise InputError(f"{name} must be numbers, got dtype {array.dtype}")
    values = float32(array)
    if values.size and not all_within(values, -FLOAT32_MAX, FLOAT32_MAX):
        raise InputError(f"{name} must be finite, got NaN or infinity in row {_first_row(~np.isfinite(values))}")
    return values


def all_within(values: FloatArray, low: float, high: float) -> bool:
    """Return whether all values, at least one, contiguous, lie from `low` to `high`; NaN does not.

    `argmin` and `argmax` stop at NaN, and have less overhead than a reduction. A large array is scanned once instead of
    twice where `low` is 0: as unsigned integers, positive floats are in their own order, and what is negative or NaN
    comes after them.
    """
    if low == 0 and values.size >= LARGE_SIZE and 0 < values.item(values.view(np.uint32).argmax()) <= high:
        return True
    return low <= values.item(values.argmin()) and values.item(values.argmax()) <= high


def is_ready(value: ArrayLike, row_shape: tuple[int, ...], low: float, high: float) -> TypeGuard[FloatArray]:
    """Return whether a graph takes a value as it is: rows of float32 in the right shape, layout and range.

    This is the fast path of a call. What is not ready is converted, or refused with a reason.
    """
    if type(value) is not np.ndarray or value.dtype is not _FLOAT32 or value.shape[1:] != row_shape or not value.size:
        return False
    flags = value.flags
    return flags.c_contiguous and flags.aligned and all_within(value, low, high)


def float32(array: NDArray[Any]) -> FloatArray:
    """Return numbers as float32, contiguous and aligned, which ONNX Runtime does not check.

    A number that is too large becomes infinity, which the caller refuses.
    """
    with np.errstate(over="ignore"):
        return np.require(array, np.float32, ("C_CONTIGUOUS", "ALIGNED"))


def array_of(name: str, value: ArrayLike) -> NDArray[Any]:
    """Convert an argument to an array.

    Raises:
        InputError: It is no array of numbers.
    """
    if isinstance(value, (str, bytes, os.PathLike)):
        kind = "a path" if isinstance(value, os.PathLike) else "text"
        remedy = _READ_FIRST.get(name, "pass the numbers themselves")
        raise InputError(f"{name} must be an array of numbers, got {kind}, {str(value)[:100]!r}; {remedy}")
    if _is_masked(value):
        raise InputError(f"{name} must not be a masked array; fill what is masked with {name}.filled(...)")
    if type(value).__name__ == "Posterior":
        raise InputError(f"{name} must be an array of numbers, got a Posterior; take its z_loc, or sample(seed=0)")
    try:
        array = np.asarray(value)
    except Exception as error:  # rows of different lengths, tensors that need detaching, other libraries' refusals
        raise InputError(f"{name} must be an array of numbers, got {type(value).__name__}: {error}") from error
    if isinstance(value, (list, tuple)) and _holds_masked(value):
        raise InputError(f"{name} must not hold masked arrays; fill what is masked with filled(...)")
    if array.dtype == object:
        raise InputError(f"{name} must be an array of numbers, got {type(value).__name__} with other content")
    return array


def _is_masked(value: object) -> bool:
    masked = sys.modules.get("numpy.ma")  # not loaded: nobody has a masked array, and the import is slow
    return masked is not None and isinstance(value, masked.MaskedArray)


def _holds_masked(values: Sequence[Any]) -> bool:
    """Return whether a list holds masked arrays, whose masks NumPy would drop."""
    return any(_holds_masked(value) if isinstance(value, (list, tuple)) else _is_masked(value) for value in values)
