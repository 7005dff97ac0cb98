"""References that unpack to gigabytes, hold Python objects, or are no archives; their SHA-256 are right."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.runtime.hostile.case import REFERENCE, Case

DAMAGED = "reference.npz is damaged"
ROWS = 256


def _reference(name: str, make: Callable[[bytes], bytes], says: str = DAMAGED) -> Case:
    return Case(f"reference-{name}", lambda folder: folder.replace(REFERENCE, make(folder.content(REFERENCE))), says)


def _members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return buffer.getvalue()


def _member(name: str, file: str, make: Callable[[bytes], bytes], says: str = DAMAGED) -> Case:
    """One member of the archive changed."""

    def change(content: bytes) -> bytes:
        members = _members(content)
        return _zip({**members, file: make(members.get(file, b""))})

    return _reference(name, change, says)


def _array(name: str, change: Callable[[dict[str, Any]], object], says: str = DAMAGED) -> Case:
    """The arrays changed, and saved as NumPy does."""

    def make(content: bytes) -> bytes:
        arrays = dict(np.load(io.BytesIO(content)))
        change(arrays)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    return _reference(name, make, says)


def _npy(header: str, values: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) % 65536) + text + values


def _described(descr: str, shape: str, order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


class _Pickled:
    """What runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/edgevae-was-here",)


def _objects(arrays: dict[str, Any], name: str) -> None:
    arrays[name] = np.array([_Pickled()] * ROWS, dtype=object)


def _patched(offset_in_entry: int, value: bytes, *, local: bool) -> Callable[[bytes], bytes]:
    """Change bytes in the first entry of the directory, and in its local header too if asked for."""

    def change(content: bytes) -> bytes:
        patched = bytearray(content)
        start = content.index(b"PK\1\2") + offset_in_entry
        patched[start : start + len(value)] = value
        if local:
            start = offset_in_entry - 2
            patched[start : start + len(value)] = value
        return bytes(patched)

    return change


def _many(content: bytes) -> bytes:
    members = _members(content)
    return _zip({**members, **{f"more{number}.npy": b"" for number in range(20_000)}}, zipfile.ZIP_STORED)


def _twice(content: bytes) -> bytes:
    members = _members(content)
    return _zip({**members, "X.npy": members["x.npy"]}).replace(b"X.npy", b"x.npy")


def _comment(content: bytes) -> bytes:
    return content[:-2] + struct.pack("<H", 60_000) + b"x" * 60_000


def _headed(number: int, descr: str, shape: str, order: str = "False") -> Case:
    header = _described(descr, shape, order)
    return _member(f"header-{number}", "x.npy", lambda npy: _npy(header, npy[128:]))


REFERENCES: tuple[Case, ...] = (
    _reference("empty", lambda _: b""),
    _reference("nonsense", lambda _: b"nonsense" * 100),
    _reference("pickle", lambda _: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."),
    _reference("npy", lambda content: _members(content)["x.npy"]),
    _reference("no-arrays", lambda _: _zip({})),
    _reference("no-directory", lambda content: content[:-100]),
    _reference("directory-only", lambda content: content[content.index(b"PK\1\2") :]),
    _reference("something-behind", lambda content: content + b"more"),
    _reference("comment", _comment),
    _reference("twenty-thousand-arrays", _many),
    _reference("one-name-twice", _twice, "two arrays of one name"),
    _reference("bzip2", lambda content: _zip(_members(content), zipfile.ZIP_BZIP2), "compressed in another way"),
    _reference("lzma", lambda content: _zip(_members(content), zipfile.ZIP_LZMA), "compressed in another way"),
    _reference("unknown-compression", _patched(10, b"\x63\0", local=True), "compressed in another way"),
    _reference("encrypted", _patched(8, b"\1\0", local=True), "encrypted"),
    _reference("from-the-future", _patched(6, b"\xff\0", local=False)),
    _reference("size-too-small", _patched(24, b"\x10\0\0\0", local=False)),
    _reference("size-too-large", _patched(24, b"\xff\xff\xff\x7f", local=False)),
    _reference("wrong-checksum", _patched(16, b"\1\2\3\4", local=False)),
    _reference("offset-beyond-the-end", _patched(42, b"\xff\xff\xff\x7f", local=False)),
    _reference("offset-at-64-bits", _patched(42, b"\xff\xff\xff\xff", local=False)),
    _member("bomb", "x.npy", lambda npy: npy[:128] + bytes(2**27), "its shape"),
    _member(
        "bomb-with-a-true-header",
        "x.npy",
        lambda _: _npy(_described("'<f4'", "(256, 131072)"), bytes(2**27)),
        "would become|must be float32 with rows of",
    ),
    _member(
        "bomb-under-another-name",
        "more.npy",
        lambda _: _npy(_described("'<f4'", "(256, 4096)"), bytes(2**22)),
        "nothing of this name",
    ),
    _member(
        "bomb-of-rows",
        "case.npy",
        lambda _: _npy(_described("'<U6'", "(5000000,)"), bytes(5000000 * 24)),
        "would become|1 to 1024 rows",
    ),
    _member("no-npy", "x.npy", lambda _: b"nonsense"),
    _member("text", "x.txt", lambda _: b"nonsense", "is no array"),
    _member("no-values", "x.npy", lambda npy: npy[:128], "its shape"),
    _member("npy-of-the-future", "x.npy", lambda npy: npy.replace(b"NUMPY\1", b"NUMPY\7"), "is no array"),
    _member("header-without-end", "x.npy", lambda _: _npy("{" * 60_000), "is no array"),
    _member("header-nested", "x.npy", lambda _: _npy("(" * 900 + ")" * 90), "is no array"),
    _member("header-that-calls", "x.npy", lambda _: _npy("__import__('os').abort()\n"), "is no array"),
    *(
        _headed(number, *header)
        for number, header in enumerate(
            (
                *(
                    ("'<f4'", "(1099511627776, 1048576)"),
                    ("'<f4'", "(256, -1)"),
                    ("'<f4'", "()"),
                    ("'<f4'", "(256, 64.0)"),
                ),
                *(("'|O'", "(256, 64)"), ("'<f8'", "(256, 32)"), ("'<f2'", "(256, 128)"), ("'<c8'", "(256, 32)")),
                *(
                    ("'|V4'", "(256, 64)"),
                    ("[('a', '<f4')]", "(256, 64)"),
                    ("'>f4'", "(256, 64)"),
                    ("'<U1'", "(256, 64)"),
                ),
                *(("'<f4'", "(256, 64)", "True"), ("'<f4'", "(64, 256)"), ("'<f4'", "(" + "1, " * 200 + ")")),
                *(("'<f4'", "(0, 64)"), ("'<i8'", "(256, 32)"), ("'<f4'", "(128, 128)"), ("'<M8[s]'", "(256, 32)")),
            )
        )
    ),
    _array("objects", lambda arrays: _objects(arrays, "x"), "holds Python objects"),
    _array("objects-as-case", lambda arrays: _objects(arrays, "case"), "holds Python objects"),
    _array("no-case", lambda arrays: arrays.pop("case"), "1 to 1024 rows"),
    _array("no-x", lambda arrays: arrays.pop("x"), "holds no x"),
    _array("no-rows", lambda arrays: arrays.update({name: array[:0] for name, array in arrays.items()})),
    _array("no-samples", lambda arrays: arrays.update(case=np.full(ROWS, "zeros")), "one at least a sample"),
    _array("unknown-case", lambda arrays: arrays.update(case=np.full(ROWS, "evil")), "each row must be one of"),
    _array(
        "case-beyond-unicode",
        lambda arrays: arrays.update(case=np.full(ROWS, 0x7FFFFFFF, np.uint32).view("<U1")),
        "each row must be one of",
    ),
    _array("nan", lambda arrays: arrays["x"].__setitem__((3, 5), np.nan), "holds NaN"),
    _array("infinity", lambda arrays: arrays["loc_img"].__setitem__((3, 5), np.inf), "holds NaN or infinity"),
    _array("fewer-rows", lambda arrays: arrays.update(x=arrays["x"][:9]), "256 rows"),
    _array("one-more", lambda arrays: arrays.update(more=arrays["x"]), "nothing of this name"),
    _array("path-as-name", lambda arrays: arrays.update({"../x": arrays["x"]}), "nothing of this name"),
    _array("doubles", lambda arrays: arrays.update(x=arrays["x"].astype(np.float64)), "is no array"),
)
