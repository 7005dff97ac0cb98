"""Files of arrays, whole and broken: IDX, `.npy` and `.npz`."""

from __future__ import annotations

import contextlib
import gzip
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgevae import InputError
from edgevae.arrays import Npz, open_idx, open_npy, open_npz


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
def test_arrays_are_read_plain_and_compressed(
    tmp_path: Path, compress: Callable[[bytes], bytes], shape: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "file").write_bytes(compress(idx(array)))
    np.testing.assert_array_equal(open_idx(tmp_path / "file"), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file"),
        (b"\x89PNG", "is not an IDX file"),
        (b"\0\0\x0d\x01" + struct.pack(">I", 1) + b"\0" * 4, "IDX type 13; expected 8"),
        (b"\0\0\x08\x03\0\0", "ends inside its header"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"should hold 6 values for shape \(2, 3\), got 5"),
        (idx(np.zeros((2, 3), np.uint8)) + b"\0", r"should hold 6 values for shape \(2, 3\), got more than 6"),
        (bytes([0, 0, 8, 65]) + struct.pack(">I", 1) * 65 + b"\0", "has 65 axes"),
        (bytes([0, 0, 8, 0, 7]), "has 0 axes"),
        (bytes([0, 0, 8, 8]) + struct.pack(">8I", 0, *[2**32 - 1] * 7), r"says that its shape is \(0, 4294967295"),
        (gzip.compress(idx(np.zeros((2, 3), np.uint8)), mtime=0)[:-9], "cannot be unpacked"),
        (b"\x1f\x8b nonsense", "cannot be unpacked"),
    ],
)
def test_broken_files_are_refused_with_the_reason(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_idx(tmp_path / "file")


@pytest.mark.parametrize("opener", [open_idx, open_npy, open_npz])
def test_a_missing_file_is_the_systems_error(tmp_path: Path, opener: Callable[[Path], object]) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        opener(tmp_path / "absent")


def test_a_plain_file_is_mapped_and_a_compressed_one_is_not_unpacked_beyond_a_limit(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed").write_bytes(gzip.compress(idx(array)))
    assert isinstance(open_idx(tmp_path / "plain", max_unpacked_bytes=23), np.memmap)
    np.testing.assert_array_equal(open_idx(tmp_path / "packed", max_unpacked_bytes=24), array)
    with pytest.raises(InputError, match="unpacks to 24 bytes, more than 23; unpack it with gunzip"):
        open_idx(tmp_path / "packed", max_unpacked_bytes=23)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64))
def test_any_bytes_give_an_array_or_an_input_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with contextlib.suppress(InputError):
        assert open_idx(tmp_path / "file").dtype == np.uint8


def test_no_more_is_decompressed_than_the_header_says(tmp_path: Path) -> None:
    packed = gzip.compress(idx(np.zeros((2, 3), np.uint8)) + bytes(2**28))
    (tmp_path / "file.gz").write_bytes(packed)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"should hold 6 values .* got more than 6"):
        open_idx(tmp_path / "file.gz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_a_header_with_a_huge_shape_allocates_no_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**30, 2**30, 1) + bytes(100))
    with pytest.raises(InputError, match="got 100; fetch it again"):
        open_idx(tmp_path / "file")


ARRAYS: dict[str, NDArray[Any]] = {
    "float32": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
    "float16": np.ones((2, 1), np.float16),
    "big endian": np.arange(6, dtype=">f8").reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "bool": np.array([True, False]),
    "text": np.array("a space"),
    "texts": np.array([["a", "bcd"]]),
    "no rows": np.zeros((0, 7), np.uint8),
    "complex": np.ones(3, complex),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_array_of_an_archive_is_read(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "x.npz", **ARRAYS)
    found, names = open_npz(tmp_path / "x.npz", *ARRAYS, "absent")
    assert names == list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    with (tmp_path / "x.npz").open("rb") as file:
        npz = Npz(file)
        assert {name: (npz.header(name).dtype, npz.header(name).shape) for name in npz} == {
            name: (array.dtype, array.shape) for name, array in ARRAYS.items()
        }
        with pytest.raises(KeyError):
            npz["absent"]


def member(header: str, values: bytes = b"", version: int = 1) -> bytes:
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + values


def described(dtype: str, shape: str) -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_the_format_is_read(tmp_path: Path, version: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", member(described("<f4", "(2,)"), bytes(8), version))
    np.testing.assert_array_equal(open_npz(tmp_path / "x.npz", "x")[0]["x"], np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            member(described("<f4", "(1099511627776, 64)"), bytes(64)),
            r"its shape \(1099511627776, 64\) needs 281474976",
        ),
        (member(described("<f4", "(3,)"), bytes(8)), r"has \d+ bytes, its shape \(3,\) needs 12"),
        (member(described("<f4", "(1,)"), bytes(8)), r"its shape \(1,\) needs 4"),
        (member(described("|O", "(1,)"), bytes(8)), "holds Python objects, .* could run any code when they are read"),
        (member(described("<f4", "(-1,)"), bytes(8)), "is no array of numbers or text"),
        (member(described("<U0", "(9999999999999,)")), "is no array of numbers or text"),
        (member(described("<y4", "(1,)"), bytes(4)), "cannot be read"),
        (member("__import__('os').abort()\n"), "is no array of numbers or text"),
        (member("(" * 60_000), "is no array of numbers or text"),
        (member(described("<f4", "(1,)"), bytes(4), version=7)[:8] + bytes(80), "is no array"),
        (b"nonsense", "is no array"),
        (b"", "is no array"),
    ],
)
def test_an_array_that_is_not_what_its_header_says_is_refused_in_little_memory(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
        archive.writestr("good.npy", member(described("<f4", "(2,)"), bytes(8)))
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        open_npz(tmp_path / "x.npz", "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22
    assert list(open_npz(tmp_path / "x.npz", "good")[0]) == ["good"], "what is not asked for does not matter"


def test_a_wrong_suffix_is_reported(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(3))
    np.savez(tmp_path / "x.npz", x=np.ones(3))
    with pytest.raises(InputError, match=r"^is a \.npy file by its content; rename it to \.npy"):
        open_npz(tmp_path / "x.npy")
    with pytest.raises(InputError, match=r"^is an \.npz archive by its content; rename it to \.npz"):
        open_npy(tmp_path / "x.npz")
    for opener in (open_npy, open_npz):
        (tmp_path / "text").write_text("text")
        with pytest.raises(InputError, match="begins with b'text'"):
            opener(tmp_path / "text")


def test_a_damaged_npy_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 4)))
    content = (tmp_path / "x.npy").read_bytes()
    for broken in (content[:-1], content[:20], content.replace(b"(3, 4)", b"(9, 9)")):
        (tmp_path / "x.npy").write_bytes(broken)
        with pytest.raises(InputError, match=r"^cannot be read: "):
            open_npy(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.array([1, "a"], object))
    with pytest.raises(InputError, match=r"^holds Python objects"):
        open_npy(tmp_path / "x.npy")
