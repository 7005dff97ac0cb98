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

import numpy as np
from numpy.typing import NDArray

from train._errors import DatasetError

_UNSIGNED_BYTE = 8
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in the IDX file at `path`, plain or compressed with gzip.

    Raises:
        DatasetError: The file cannot be read, is not IDX, holds other than unsigned bytes, or is cut short.
    """
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}; delete it and fetch it again") from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DatasetError(f"{path} is not an IDX file: expected two zero bytes at its start, got {content[:2]!r}")
    if content[2] != _UNSIGNED_BYTE:
        raise DatasetError(f"{path} holds values of IDX type {content[2]}; expected {_UNSIGNED_BYTE}, unsigned bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DatasetError(f"{path} ends inside its header; fetch it again")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) != start + math.prod(shape):
        got = len(content) - start
        raise DatasetError(f"{path} should hold {math.prod(shape)} values for shape {shape}, got {got}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
