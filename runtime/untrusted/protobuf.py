"""The wire format of protocol buffers: finds the fields of a message in its bytes, without copies.

See https://protobuf.dev/programming-guides/encoding. Other parsers skip unknown fields, and let a later value replace
an earlier one. This one refuses both, so that nothing passes unchecked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from ..errors import BundleError

Schema: TypeAlias = "Mapping[int, Literal[True, False] | str]"
"""By tag, `number << 3 | wire type`: whether the field may be repeated, or a text that says why it is refused."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_FIELDS = 500_000  # of a whole graph; real networks have far fewer
_UINT64 = 2**64 - 1
_FIXED = {FIXED64: 8, FIXED32: 4}


Field: TypeAlias = tuple[int, int, int]
"""A field: `(tag, value, 0)` for a varint, `(tag, start, end)` for any other."""


class Message:
    """The bytes of a message.

    Args:
        data: All of it.
        file: Its name in messages.
    """

    def __init__(self, data: bytes, file: str) -> None:
        self.data = data
        self.file = file
        self._left = _MAX_FIELDS

    def fields(self, schema: Schema, start: int, end: int) -> dict[int, list[Field]]:
        """Return the fields between `start` and `end` by their numbers, in order.

        Raises:
            BundleError: The bytes are damaged; or there is a field that the schema does not know or does not allow.
            IndexError: The bytes end before a field does.
        """
        data = self.data
        found: dict[int, list[Field]] = {}
        position = start
        while position < end:
            tag = data[position]
            position += 1
            if tag > 127:
                tag, position = self._varint(position - 1)
            if tag not in schema:
                raise self.error(
                    f"this is no ONNX graph from EdgeVAE's export, or it is damaged (field {tag >> 3}, type {tag & 7})"
                )
            wire = tag & 7
            value = data[position]  # of a varint; of bytes, how many there are
            if wire in _FIXED:
                value = _FIXED[wire]
            elif value > 127:
                value, position = self._varint(position)
            else:
                position += 1
            stop = 0 if wire == VARINT else position + value
            found.setdefault(tag >> 3, []).append((tag, position if stop else value, stop))
            position = stop or position
        if position != end:
            raise self.damaged()
        for number, fields in found.items():
            self._count(len(fields))
            rule = schema[fields[0][0]]
            if isinstance(rule, str):
                raise self.error(rule)
            if len(fields) > 1 and not rule:
                raise self.error(f"holds twice what a graph has once (field {number})")
        return found

    def bytes_of(self, field: Field) -> bytes:
        """Return the content of a field of bytes."""
        return self.data[field[1] : field[2]]

    def text_of(self, field: Field) -> bytes:
        """Return the content of a field of bytes that is text, which ONNX Runtime may quote.

        Raises:
            UnicodeDecodeError: It is not UTF-8.
        """
        content = self.bytes_of(field)
        content.decode()
        return content

    def text(self, fields: Sequence[Field]) -> str:
        """Return the first of these fields as text that can be shown; empty where there is none."""
        return shown(self.bytes_of(fields[0])) if fields else ""

    def number(self, fields: Sequence[Field]) -> int:
        """Return the first of these fields, a varint, as a signed integer; 0 where there is none."""
        return signed(fields[0][1]) if fields else 0

    def integers(self, field: Field) -> list[int]:
        """Return the values of a field of signed integers, which may be packed."""
        tag, position, end = field
        if tag & 7 == VARINT:
            return [signed(position)]
        self._count(self.count_varints(field))
        values = []
        while position < end:
            value, position = self._varint(position)
            values.append(signed(value))
        return values

    def floats(self, field: Field) -> list[float]:
        """Return the values of a field of floats, which may be packed."""
        _, start, end = field
        if end > len(self.data) or (end - start) % 4:
            raise self.damaged()
        self._count((end - start) // 4)
        floats: list[float] = np.frombuffer(self.data, "<f4", (end - start) // 4, start).tolist()
        return floats

    def count_varints(self, field: Field) -> int:
        """Return how many integers are packed in a field."""
        packed = np.frombuffer(self.data, np.uint8, field[2] - field[1], field[1])
        return int(np.count_nonzero(packed < 128))

    def _count(self, parts: int) -> None:
        """Refuse a graph with so many parts that checking it would take long."""
        self._left -= parts
        if self._left < 0:
            raise self.error(f"has more than {_MAX_FIELDS} parts")

    def error(self, what: str) -> BundleError:
        """Return the error that refuses this message."""
        return BundleError(f"{self.file}: {what}")

    def damaged(self) -> BundleError:
        """Return the error that says that the bytes are no such message."""
        return self.error("this is no ONNX graph, or a damaged one; copy the whole bundle again")

    def _varint(self, position: int) -> tuple[int, int]:
        """Return the varint at `position`, and where the next field begins."""
        data = self.data
        value = data[position]
        position += 1
        if value < 128:
            return value, position
        value &= 127
        for shift in range(7, 70, 7):
            part = data[position]
            position += 1
            value |= (part & 127) << shift
            if part < 128:
                return value & _UINT64, position
        raise self.damaged()


def bytes_field(number: int, content: bytes) -> bytes:
    """Encode a field that holds bytes."""
    return _written(number << 3 | BYTES) + _written(len(content)) + content


def integer_field(number: int, value: int) -> bytes:
    """Encode a field that holds an integer, at least 0."""
    return _written(number << 3 | VARINT) + _written(value)


def shown(text: bytes) -> str:
    """Return text as ASCII without control characters, which a terminal would obey."""
    return text.decode("latin-1").encode("unicode_escape").decode("ascii")


def signed(value: int) -> int:
    """Return the value of a varint as an int64."""
    return value - 2**64 if value >= 2**63 else value


def _written(value: int) -> bytes:
    """Encode a varint."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
