"""The same numbers in other memory, dtypes and containers; and what is no array of such numbers at all."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


class OfItsOwn(np.ndarray[Any, np.dtype[Any]]):
    """A subclass that says nothing of its own."""


class Convertible:
    """Not an array, but it can make one."""

    def __init__(self, values: Array) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self._values if dtype is None else self._values.astype(dtype)


class Unwilling:
    """Fails when NumPy asks it for an array, in a way of its own."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        raise KeyError("no array")


def as_type(dtype: str) -> Callable[[Array], Array]:
    def converted(plain: Array) -> Array:
        if dtype[0] in "mM":
            return plain.astype(np.int64).astype(dtype)
        return plain.view(f"V{plain.itemsize}") if dtype[0] == "V" else plain.astype(dtype)

    return converted


def misaligned(plain: Array) -> Array:
    """One byte away from where a processor wants it."""
    memory = np.zeros(plain.nbytes + 1, np.uint8)[1:]
    moved = memory.view(plain.dtype).reshape(plain.shape)
    moved[...] = plain
    return moved


def field(plain: Array) -> Array:
    """A column of records, neither aligned nor contiguous."""
    records = np.zeros(plain.shape, np.dtype([("before", np.int8), ("value", plain.dtype)]))
    records["value"] = plain
    return records["value"]


def backwards(plain: Array) -> Array:
    """Strides below zero on all axes."""
    return np.ascontiguousarray(np.flip(plain))[(slice(None, None, -1),) * plain.ndim]


def read_only(plain: Array) -> Array:
    copy = plain.copy()
    copy.setflags(write=False)
    return copy


def spread(plain: Array) -> Array:
    """Each second value of a larger array."""
    return np.repeat(plain, 2, axis=-1)[..., ::2]


LAYOUTS: dict[str, Callable[[Array], Any]] = {
    "plain": lambda plain: plain,
    "fortran": np.asfortranarray,
    "backwards": backwards,
    "spread": spread,
    "misaligned": misaligned,
    "field": field,
    "read-only": read_only,
    "other byte order": lambda plain: plain.astype(plain.dtype.newbyteorder()),
    "subclass": lambda plain: plain.view(OfItsOwn),
    "convertible": Convertible,
    "memoryview": lambda plain: plain.data,
    "tensor": lambda plain: torch.from_numpy(plain.copy()),
    "tuple of rows": lambda plain: tuple(plain.copy()) if len(plain) else plain,
}
"""What keeps dtype and numbers."""

FLOATS: dict[str, Callable[[Array], Any]] = {
    "float64": lambda plain: plain.astype(np.float64),
    "longdouble": lambda plain: plain.astype(np.longdouble),
    "big-endian float64": lambda plain: plain.astype(">f8"),
    "backwards float64": lambda plain: backwards(plain.astype(np.float64)),
    "lists": lambda plain: plain.tolist() if plain.size else plain,
}
INTEGERS: dict[str, Callable[[Array], Any]] = {
    **{kind: as_type(kind) for kind in ("i1", ">i2", "<i4", ">i8", "u1", ">u2", "<u8")},
    "list": lambda plain: plain.tolist() if plain.size else plain,
    "array": lambda plain: array.array("q", plain.tolist()),
}


def not_finite(plain: Array, value: float) -> Array:
    spoilt = plain.astype(np.float64)
    spoilt.flat[-1] = value
    return spoilt


REFUSED: dict[str, Callable[[Array], Any]] = {
    **{kind: as_type(kind) for kind in ("c8", "c16", "O", "S8", "U8", "m8[s]", "M8[s]", "V8", "bool")},
    "masked": lambda plain: np.ma.masked_array(plain, mask=True),
    "masked, nothing masked": np.ma.masked_array,
    "list of masked": lambda plain: [np.ma.masked_array(row, mask=True) for row in plain],
    "records": lambda plain: plain.astype([("value", plain.dtype)]),
    "a number": lambda plain: plain.flat[0],
    "a dictionary": lambda plain: {"x": plain},
    "text": lambda _: "0.5",
    "ragged": lambda _: [[0.5], [0.5, 0.5]],
    "too deep": lambda plain: plain[(None,) * 8],
    "one more column": lambda plain: np.concatenate([plain, plain[..., :1]], -1),
    "unwilling": lambda _: Unwilling(),
    "iterator": iter,
    "NaN": lambda plain: not_finite(plain, np.nan),
    "infinity": lambda plain: not_finite(plain, -np.inf),
    "beyond float32": lambda plain: not_finite(plain, 1e300),
}
"""What no argument takes; of an array with at least one value."""
