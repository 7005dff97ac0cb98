"""IDX, the file format of MNIST and its kin, as far as it holds unsigned bytes.

Two zero bytes, the type of the values (8: unsigned byte), the number of axes, each axis's length as a big-endian
32-bit integer, then the values. Source: Yann LeCun's page of the MNIST database.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

_UNSIGNED_BYTE = 8
_MAX_AXES = 8
_MAX_UNPACKED_BYTES = 2**30  # a compressed file is unpacked into memory; a plain one is mapped


def is_idx(path: Path) -> bool:
    """Return whether a file's name is one of IDX: `…-ubyte`, `….idx`, each also with `.gz`."""
    return path.name.lower().endswith(("-ubyte", ".idx", ".gz"))


def open_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in an IDX file: memory-mapped if the file is plain, in memory if its name ends in `.gz`.

    Raises:
        InputError: The file is not IDX, holds other than unsigned bytes, or another number of them than it says.
        OSError: It cannot be read.
    """
    if path.suffix.lower() != ".gz":
        with path.open("rb") as file:
            shape, start = _header(file)
            found = os.fstat(file.fileno()).st_size - start
        _check_length(shape, found, str(found))
        if found == 0:
            return np.empty(shape, np.uint8)
        mapped: NDArray[np.uint8] = np.memmap(path, np.uint8, "r", start, shape)
        return mapped
    try:
        with gzip.open(path, "rb") as packed:
            shape, _ = _header(packed)
            size = math.prod(shape)
            if size > _MAX_UNPACKED_BYTES:
                raise InputError(f"unpacks to {size:,} bytes, more than {_MAX_UNPACKED_BYTES:,}; unpack it with gunzip")
            values = packed.read(size + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"cannot be unpacked: {error}") from error
    _check_length(shape, len(values), f"more than {size}" if len(values) > size else str(len(values)))
    return np.frombuffer(values, np.uint8).reshape(shape)


def _header(file: BinaryIO | Any) -> tuple[tuple[int, ...], int]:
    """Read the shape, and say where the values begin."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise InputError(f"is not an IDX file: expected two zero bytes at its start, got {magic[:2]!r}")
    if magic[2] != _UNSIGNED_BYTE:
        raise InputError(f"holds values of IDX type {magic[2]:#04x}; expected {_UNSIGNED_BYTE:#04x}, unsigned bytes")
    if not 1 <= magic[3] <= _MAX_AXES:
        raise InputError(f"has {magic[3]} axes; expected 1 for labels, 3 for images")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise InputError("ends inside its header; fetch it again")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    if math.prod(length for length in shape if length) > sys.maxsize:  # NumPy refuses it even where an axis is 0
        raise InputError(f"says that its shape is {shape}, which no array can have; fetch it again")
    return shape, 4 + len(sizes)


def _check_length(shape: tuple[int, ...], found: int, text: str) -> None:
    if found != math.prod(shape):
        raise InputError(f"should hold {math.prod(shape)} values for shape {shape}, got {text}; fetch it again")
