"""Arrays in files: NumPy's `.npy` and `.npz`, and IDX, the format of MNIST.

An array's header is checked against the size of the file before any memory is allocated: `numpy.load` believes the
header, so that a few kilobytes could ask for gigabytes. Pickled objects, which can run any code, are never read.

Messages of errors begin with a verb; callers put the file's name before them.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

_NPY_MAGIC, _ZIP_MAGICS = b"\x93NUMPY", (b"PK\x03\x04", b"PK\x05\x06")
_NPY_SUFFIX = ".npy"
_NPY_LENGTH_FORMATS = {1: "<H", 2: "<I", 3: "<I"}  # of the header's length, by the format's version
_MAX_HEADER_BYTES = 10_000  # as in NumPy
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z]\d{0,9}(?:\[\w{1,20}\])?)', 'fortran_order': (True|False), "
    rb"'shape': \(([\dL, ]*)\), ?\} *\n?"
)
_OBJECTS = (
    "holds Python objects, as arrays of different shapes are saved, which could run any code when they are read; "
    "save it again as an array of numbers"
)

# Limits for an untrusted archive.
_MAX_ARRAYS = 256
_MAX_DIRECTORY_BYTES = 200 * _MAX_ARRAYS
_LARGE_BYTES, _MAX_RATIO = 2**26, 100  # real references hold noise, which hardly compresses
_END, _END_BYTES = b"PK\x05\x06", 22
_END_64, _END_64_BYTES = b"PK\x06\x07", 20
_ENCRYPTED = 1

_IDX_ENDS = ("-ubyte", ".idx", ".gz")
_IDX_UNSIGNED_BYTE = 8
_IDX_MAX_AXES = 8
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 2**24


class ArrayHeader(NamedTuple):
    """The header of an array in an archive.

    Args:
        dtype: Numbers or text.
        shape: Its shape.
        fortran_order: Whether the first axis varies fastest.
        start: Offset of its values in bytes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    start: int

    @property
    def size_bytes(self) -> int:
        """Size of its values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Npz(Mapping[str, NDArray[Any]]):
    """The arrays of an `.npz` archive by name, read when they are asked for.

    Args:
        file: The archive, opened. It must stay open.
        untrusted: Whether to refuse at once what could take much time or memory: more than 256 arrays, two of the same
            name, anything but arrays, or more than 64 MB and a hundred times the file's size when unpacked.

    Raises:
        InputError: It is no archive, or damaged.
    """

    def __init__(self, file: BinaryIO, *, untrusted: bool = False) -> None:
        size_bytes = file.seek(0, os.SEEK_END)
        if untrusted:
            _check_directory(file, size_bytes)
        file.seek(0)
        magic = file.read(len(_NPY_MAGIC))
        file.seek(0)
        if magic == _NPY_MAGIC:
            raise InputError("is a .npy array by its content; name it so")
        if not magic.startswith(_ZIP_MAGICS):
            raise InputError(f"is no .npz archive, and begins with {magic!r}")
        try:
            self._archive = np.load(file, allow_pickle=False)
            infos = self._archive.zip.infolist()
        except Exception as error:  # on damaged files NumPy and zipfile raise errors of many unrelated classes
            raise InputError(f"cannot be read: {error}") from error
        self._infos = {info.filename.removesuffix(_NPY_SUFFIX): info for info in infos}
        if not untrusted:
            return
        if len(self._infos) < len(infos):
            raise InputError("holds two arrays of one name")
        unpacked_bytes = sum(self.header(name).size_bytes for name in self)
        if unpacked_bytes > max(_LARGE_BYTES, _MAX_RATIO * size_bytes):
            raise InputError(f"has {size_bytes} bytes that would become {unpacked_bytes}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array.

        Raises:
            InputError: It is damaged, or no array of numbers or text.
            KeyError: There is none of this name.
        """
        self.header(name)
        try:
            array: NDArray[Any] = self._archive[self._infos[name].filename]
        except Exception as error:  # errors of many classes, as above
            raise InputError(f"cannot be read: {name!a}: {error}") from error
        return array

    def header(self, name: str) -> ArrayHeader:
        """Return the dtype and shape of an array, which fit its size in the archive, without reading it.

        Raises:
            InputError: It is damaged, or no array of numbers or text.
            KeyError: There is none of this name.
        """
        info = self._infos[name]
        if info.flag_bits & _ENCRYPTED or info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise InputError(
                f"cannot be read: {info.filename!a} is encrypted, or compressed in another way than NumPy does"
            )
        try:
            with self._archive.zip.open(info) as file:
                header = _read_npy_header(file)
        except InputError as error:
            raise InputError(f"cannot be read: {info.filename!a} {error}") from error
        except Exception as error:  # errors of many classes, as above
            raise InputError(f"cannot be read: {info.filename!a}: {type(error).__name__}, {error}") from error
        if info.file_size != header.start + header.size_bytes:
            raise InputError(
                f"cannot be read: {info.filename!a} has {info.file_size} bytes, its shape {header.shape} needs "
                f"{header.size_bytes}"
            )
        return header


def open_npz(path: str | os.PathLike[str], *names: str) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the arrays of these names that an `.npz` file has, and the names of all of them.

    Raises:
        InputError: It is no archive, or damaged, or one of these is no array of numbers or text.
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        npz = Npz(file)
        return {name: npz[name] for name in names if name in npz}, list(npz)


def open_npy(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Return the array in a `.npy` file, memory-mapped read-only.

    Raises:
        InputError: It is no `.npy` file, damaged, or holds Python objects.
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        magic = file.read(len(_NPY_MAGIC))
    if magic.startswith(_ZIP_MAGICS):
        raise InputError("is a .npz archive by its content; name it so")
    if magic != _NPY_MAGIC:
        raise InputError(
            f"cannot be read: it is no .npy or .npz file, and begins with {magic!r}; write it with np.save"
        )
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # errors of many classes, as above
        if "Python objects" in str(error):
            raise InputError(_OBJECTS) from error
        raise InputError(f"cannot be read: {error}; save it again") from error
    return mapped


def is_idx_name(path: Path) -> bool:
    """Return whether a file's name is one of IDX: `…-ubyte`, `….idx`, or compressed, `….gz`."""
    return path.name.lower().endswith(_IDX_ENDS)


def open_idx(path: Path, max_unpacked_bytes: int | None = None) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in an IDX file: mapped if it is plain, in memory if compressed with gzip.

    IDX is two zero bytes, the type of the values (8: unsigned byte), the number of axes, the length of each axis as a
    big-endian 32-bit integer, and the values. Source: Yann LeCun's page of the MNIST database.

    Args:
        path: The file.
        max_unpacked_bytes: Largest size of a compressed file's values; no more than its header says is unpacked.

    Raises:
        InputError: The file is not IDX, holds other values than unsigned bytes, or not as many as its header says.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        if not packed:
            shape, start = _read_idx_header(file)
            _check_idx_length(shape, os.fstat(file.fileno()).st_size - start)
            if not math.prod(shape):
                return np.empty(shape, np.uint8)
            mapped: NDArray[np.uint8] = np.memmap(path, np.uint8, "r", start, shape)
            return mapped
    try:
        with gzip.open(path, "rb") as unpacked:
            shape, _ = _read_idx_header(unpacked)
            size = math.prod(shape)
            if max_unpacked_bytes is not None and size > max_unpacked_bytes:
                raise InputError(f"unpacks to {size:,} bytes, more than {max_unpacked_bytes:,}; unpack it with gunzip")
            values = bytearray()
            while chunk := unpacked.read(min(size + 1 - len(values), _CHUNK_BYTES)):
                values += chunk
    except (gzip.BadGzipFile, EOFError, zlib.error, MemoryError) as error:
        raise InputError(f"cannot be unpacked: {error}; fetch it again") from error
    _check_idx_length(shape, len(values))
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_npy_header(file: Any) -> ArrayHeader:
    """Read the header of a `.npy` file without evaluating it."""
    magic = file.read(len(_NPY_MAGIC) + 2)
    form = _NPY_LENGTH_FORMATS.get(magic[len(_NPY_MAGIC)]) if len(magic) == len(_NPY_MAGIC) + 2 else None
    if form is None or not magic.startswith(_NPY_MAGIC):
        raise InputError("is no array")
    length = file.read(struct.calcsize(form))
    size = struct.unpack(form, length)[0]
    found = _HEADER.fullmatch(file.read(min(size, _MAX_HEADER_BYTES)))
    if found is None:
        raise InputError("is no array of numbers or text")
    dtype = np.dtype(found[1].decode())
    if dtype.hasobject:
        raise InputError(_OBJECTS)
    if not dtype.itemsize:
        raise InputError("is no array of numbers or text")
    shape = tuple(map(int, re.findall(rb"\d+", found[3])))
    return ArrayHeader(dtype, shape, found[2] == b"True", len(magic) + len(length) + size)


def _check_directory(file: BinaryIO, size_bytes: int) -> None:
    """Check that the archive's directory, which zipfile reads as a whole, is small."""
    file.seek(max(0, size_bytes - _END_BYTES - _END_64_BYTES))
    tail = file.read()
    end, before = tail[-_END_BYTES:], tail[:-_END_BYTES]
    num_arrays, directory_bytes = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if (
        not (end.startswith(_END) and end.endswith(b"\0\0"))
        or before.startswith(_END_64)
        or num_arrays > _MAX_ARRAYS
        or directory_bytes > _MAX_DIRECTORY_BYTES
    ):
        raise InputError("is no archive of arrays, or was cut off")


def _read_idx_header(file: Any) -> tuple[tuple[int, ...], int]:
    """Return the shape, and the offset of the values in bytes."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise InputError(f"is not an IDX file: expected two zero bytes at its start, got {magic[:2]!r}")
    if magic[2] != _IDX_UNSIGNED_BYTE:
        raise InputError(f"holds values of IDX type {magic[2]}; expected {_IDX_UNSIGNED_BYTE}, unsigned bytes")
    if not 1 <= magic[3] <= _IDX_MAX_AXES:
        raise InputError(f"has {magic[3]} axes; expected 1 for labels, 3 for images")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise InputError("ends inside its header; fetch it again")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    if math.prod(length for length in shape if length) > sys.maxsize:  # NumPy refuses it even where an axis is 0
        raise InputError(f"says that its shape is {shape}, which no array can have; fetch it again")
    return shape, 4 + len(sizes)


def _check_idx_length(shape: tuple[int, ...], found: int) -> None:
    expected = math.prod(shape)
    if found != expected:
        got = f"more than {expected}" if found > expected else str(found)
        raise InputError(f"should hold {expected} values for shape {shape}, got {got}; fetch it again")
