"""Checks that the constants of an ONNX graph are complete, finite, and in the file itself."""

from __future__ import annotations

import math

import numpy as np

from ..errors import BundleError
from .growth import MAX_SHAPE_VALUES
from .protobuf import BYTES, VARINT, Field, Message, Schema, shown

_MAX_AXES = 64
_CHUNK_VALUES = 2**15  # checked at a time, to stay in the CPU's cache

_DIMS, _TYPE, _TEXT, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 6, 8, 9, 13, 14
_FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S = 4, 5, 7, 10, 11
_STORES = (_RAW, _FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S)
_VARINTS = (_INT32S, _INT64S, _UINT64S)
_TENSOR: Schema = {
    _DIMS << 3 | VARINT: True,
    _DIMS << 3 | BYTES: True,
    _TYPE << 3 | VARINT: False,
    _LOCATION << 3 | VARINT: False,
    **{number << 3 | BYTES: False for number in (*_STORES, _NAME, 12)},
    **{number << 3 | BYTES: True for number in (_TEXT, _EXTERNAL, 16)},
}
"""`TensorProto`, numbers packed only."""

# By ONNX data type: the NumPy type, and the field that stores it where it is not raw.
_TYPES: dict[int, tuple[str, int | None]] = {
    1: ("<f4", _FLOATS),
    2: ("<u1", _INT32S),
    3: ("<i1", _INT32S),
    4: ("<u2", _INT32S),
    5: ("<i2", _INT32S),
    6: ("<i4", _INT32S),
    7: ("<i8", _INT64S),
    9: ("<u1", _INT32S),  # bool
    10: ("<u2", None),  # float16, read as integers
    11: ("<f8", _DOUBLES),
    12: ("<u4", _UINT64S),
    13: ("<u8", _UINT64S),
    16: ("<u2", None),  # bfloat16
}
_INFINITY = {10: 0x7C00, 16: 0x7F80}  # the bits of infinity without the sign; larger ones are NaN


class Weight:
    """A constant of a graph, checked.

    Args:
        message: The graph.
        tensor: The tensor in it.

    Raises:
        BundleError: It is damaged, lies in another file, has no numeric type, or holds NaN or infinity; a single number
            may be infinite, as the limit of a clip is.
    """

    def __init__(self, message: Message, tensor: Field) -> None:
        self._message = message
        fields = message.fields(_TENSOR, *tensor[1:])
        self.name = message.text_of(fields[_NAME][0]) if _NAME in fields else b""
        self.onnx_type = message.number(fields.get(_TYPE, ()))
        dims = [size for field in fields.get(_DIMS, ()) for size in message.integers(field)]
        self.dims = tuple(dims)
        stores = [fields[number][0] for number in _STORES if number in fields]
        if _EXTERNAL in fields or message.number(fields.get(_LOCATION, ())):
            raise self._error("lies in another file; a graph must be one file")
        if self.onnx_type not in _TYPES or _TEXT in fields:
            raise self._error(f"is of ONNX data type {self.onnx_type}; a graph may hold numbers only")
        if len(dims) > _MAX_AXES or min(dims, default=0) < 0 or len(stores) > 1:
            raise self._error(f"has the sizes {dims[:_MAX_AXES]}, stored in {len(stores)} ways")
        self._dtype = np.dtype(_TYPES[self.onnx_type][0])
        self._store = stores[0] if stores else None
        self.count = math.prod(dims)
        if (stored := self._stored()) != self.count:
            raise self._error(f"holds {stored} numbers, its sizes {dims} need {self.count}")
        if not self._is_finite():
            raise self._error("holds NaN or infinity; train again, or mask with finite numbers")

    @property
    def integers(self) -> list[int]:
        """Its numbers, if they are at most `MAX_SHAPE_VALUES` integers; otherwise nothing."""
        if (
            self._store is None
            or self.count > MAX_SHAPE_VALUES
            or self._dtype.kind not in "iu"
            or self.onnx_type in _INFINITY
        ):
            return []
        tag, start, _ = self._store
        if tag >> 3 in _VARINTS:
            return self._message.integers(self._store)
        values: list[int] = np.frombuffer(self._message.data, self._dtype, self.count, start).tolist()
        return values

    def _stored(self) -> int:
        """Return how many numbers are stored; -1 if they are in a field of another type."""
        if self._store is None:
            return 0
        tag, start, end = self._store
        if tag >> 3 not in {_RAW, _TYPES[self.onnx_type][1]}:
            return -1
        if tag >> 3 in _VARINTS:
            return self._message.count_varints(self._store)
        count, rest = divmod(end - start, self._dtype.itemsize)
        return -1 if rest else count

    def _is_finite(self) -> bool:
        """Return whether there is no NaN, and no infinity except in a single number."""
        if self._store is None or (self._dtype.kind != "f" and self.onnx_type not in _INFINITY):
            return True
        for first in range(0, self.count, _CHUNK_VALUES):
            offset = self._store[1] + first * self._dtype.itemsize
            values = np.frombuffer(self._message.data, self._dtype, min(_CHUNK_VALUES, self.count - first), offset)
            if self.onnx_type in _INFINITY:
                if int((values & 0x7FFF).max()) >= _INFINITY[self.onnx_type] + (self.count == 1):
                    return False
            elif not np.isfinite(values).all() and (self.count > 1 or np.isnan(values).any()):
                return False
        return True

    def _error(self, what: str) -> BundleError:
        return self._message.error(f"{shown(self.name)} {what}")
