"""IDX, the file format of MNIST and its kin.

Two zero bytes, the type of the values (8: unsigned byte), the number of axes, each axis's length as a big-endian
32-bit integer, then the values. Source: Yann LeCun's page of the MNIST database.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError

_UNSIGNED_BYTE = 8
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_AXES = 8
_PART_BYTES = 2**24


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in the IDX file at `path`, plain or compressed with gzip.

    No more is unpacked than the header says that there is.

    Raises:
        DatasetError: The file cannot be read, is not IDX, holds other than unsigned bytes, or is cut short.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            shape = _header(path, file)
            size = math.prod(shape)
            content = _read(file, size + 1)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DatasetError(f"{path} cannot be read: {error}; delete it and fetch it again") from error
    if len(content) != size:
        got = f"more than {size}" if len(content) > size else str(len(content))
        raise DatasetError(f"{path} should hold {size} values for shape {shape}, got {got}; fetch it again")
    try:
        return np.frombuffer(content, np.uint8).reshape(shape)
    except ValueError as error:
        raise DatasetError(f"{path} says that its shape is {shape}: {error}; fetch it again") from error


def _header(path: Path, file: BinaryIO | Any) -> tuple[int, ...]:
    """Read the shape; what follows are the values."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DatasetError(f"{path} is not an IDX file: expected two zero bytes at its start, got {magic[:2]!r}")
    if magic[2] != _UNSIGNED_BYTE:
        raise DatasetError(f"{path} holds values of IDX type {magic[2]}; expected {_UNSIGNED_BYTE}, unsigned bytes")
    if not 1 <= magic[3] <= _MAX_AXES:
        raise DatasetError(f"{path} has {magic[3]} axes; expected 1 for labels, 3 for images")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DatasetError(f"{path} ends inside its header; fetch it again")
    return struct.unpack(f">{magic[3]}I", sizes)


def _read(file: BinaryIO | Any, most: int) -> bytearray:
    """Read so many bytes or all there are, a part at a time: a wrong header must not reserve memory."""
    content = bytearray()
    while part := file.read(min(most - len(content), _PART_BYTES)):
        content += part
    return content
