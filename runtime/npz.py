"""Arrays in an `.npz` archive, of which nothing is unpacked before it is clear how large it becomes.

`numpy.load` believes an archive: a few kilobytes may become gigabytes, and a header in an array is Python to parse.
"""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

if TYPE_CHECKING:
    import zipfile

_SUFFIX = ".npy"
_MAX_ARRAYS = 256
_MAX_DIRECTORY_BYTES = 200 * _MAX_ARRAYS
_MAX_HEADER_BYTES = 1000
# What compresses better is a bomb, if it is large: noise is part of a reference, and compresses to a tenth at best.
_LARGE_BYTES, _MAX_RATIO = 2**26, 100
_END = b"PK\x05\x06"
_END_BYTES = 22
_END_64, _END_64_BYTES = b"PK\x06\x07", 20
_ENCRYPTED = 1
_NPY = b"\x93NUMPY\x01\x00"
_HEADER = (
    rb"\{'descr': '(<f4|<i8|<U[1-9]\d?)', 'fortran_order': False, 'shape': \((\d{1,9},(?: \d{1,9},?){0,63})\), \} *\n"
)


class Entry(NamedTuple):
    """An array in an archive, not yet unpacked.

    Args:
        dtype: float32, int64 or text.
        shape: Its shape; at least one axis.
        start: Where its values start, behind the header.
        info: Where it is in the archive.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    info: zipfile.ZipInfo

    @property
    def size_bytes(self) -> int:
        """What its values take."""
        return math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """An archive as `numpy.savez` and `numpy.savez_compressed` write them.

    Args:
        content: The file.

    Raises:
        BundleError: It is damaged, holds what is no array of numbers or text, or would become far larger than it is.
    """

    def __init__(self, content: bytes) -> None:
        import zipfile  # takes milliseconds that only a verification needs

        _check_end(content)
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(content))
            infos = self._archive.infolist()
            self.entries = {info.filename.removesuffix(_SUFFIX): self._entry(info) for info in infos}
        except BundleError:
            raise
        except Exception as error:  # zipfile and zlib raise errors of many unrelated classes
            raise damaged(f"{type(error).__name__}, {error}") from error
        if len(self.entries) < len(infos):
            raise damaged("it holds two arrays of one name")
        size = sum(entry.size_bytes for entry in self.entries.values())
        if size > max(_LARGE_BYTES, _MAX_RATIO * len(content)):
            raise damaged(f"{len(content)} bytes would become {size}")

    def read_entry(self, name: str, entry: Entry) -> NDArray[Any]:
        """Return the array of this name and entry.

        Raises:
            BundleError: It is damaged.
        """
        try:
            content = self._archive.read(entry.info)
            values = np.frombuffer(content, entry.dtype, math.prod(entry.shape), entry.start)
            return values.reshape(entry.shape).copy()  # which can be written to, as PyTorch wants it
        except Exception as error:  # likewise; NumPy refuses a shape with a 0 beside lengths that no array has
            raise damaged(f"{name}: {error}") from error

    def _entry(self, info: zipfile.ZipInfo) -> Entry:
        import zipfile

        if info.flag_bits & _ENCRYPTED or info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise damaged(f"{info.filename!a} is encrypted, or compressed in another way than NumPy does")
        with self._archive.open(info) as file:
            head = file.read(len(_NPY) + 2)
            size = int.from_bytes(head[len(_NPY) :], "little")
            header = re.fullmatch(_HEADER, file.read(min(size, _MAX_HEADER_BYTES)))
        if head[: len(_NPY)] != _NPY or header is None or not info.filename.endswith(_SUFFIX):
            raise damaged(f"{info.filename!a} is no array of float32, int64 or text")
        shape = tuple(map(int, re.findall(rb"\d+", header[2])))
        entry = Entry(np.dtype(header[1].decode()), shape, len(head) + size, info)
        if info.file_size != entry.start + entry.size_bytes:
            raise damaged(f"{info.filename!a} has {info.file_size} bytes, its shape {shape} needs {entry.size_bytes}")
        return entry


def damaged(why: str) -> BundleError:
    """Return the error that says that the reference is damaged."""
    return BundleError(f"reference.npz is damaged: {why}; export the model again")


def _check_end(content: bytes) -> None:
    """See that the archive's directory, which is read as a whole, is small."""
    end = content[-_END_BYTES:]
    before = content[-_END_BYTES - _END_64_BYTES : -_END_BYTES]
    arrays, directory_bytes = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if (
        not (end.startswith(_END) and end.endswith(b"\0\0"))
        or before.startswith(_END_64)
        or arrays > _MAX_ARRAYS
        or directory_bytes > _MAX_DIRECTORY_BYTES
    ):
        raise damaged("it is no archive of arrays, or was cut off")
