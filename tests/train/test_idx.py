"""IDX files, whole and broken."""

from __future__ import annotations

import contextlib
import gzip
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevae.train import DatasetError
from edgevae.train.data.idx import read_idx


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
def test_arrays_are_read_plain_and_compressed(
    tmp_path: Path, compress: Callable[[bytes], bytes], shape: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "file").write_bytes(compress(idx(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "file"), array)


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
        (gzip.compress(idx(np.zeros((2, 3), np.uint8)), mtime=0)[:-9], "cannot be read"),
        (b"\x1f\x8b nonsense", "cannot be read"),
    ],
)
def test_broken_files_are_refused_with_the_reason(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_idx(tmp_path / "file")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="absent cannot be read"):
        read_idx(tmp_path / "absent")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64))
def test_any_bytes_give_an_array_or_a_dataset_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with contextlib.suppress(DatasetError):
        assert read_idx(tmp_path / "file").dtype == np.uint8


def test_no_more_is_unpacked_than_the_header_says(tmp_path: Path) -> None:
    packed = gzip.compress(idx(np.zeros((2, 3), np.uint8)) + bytes(2**28))
    (tmp_path / "file.gz").write_bytes(packed)
    tracemalloc.start()
    with pytest.raises(DatasetError, match=r"should hold 6 values .* got more than 6"):
        read_idx(tmp_path / "file.gz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_a_header_that_promises_too_much_reserves_no_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", *[2**32 - 1] * 3) + bytes(100))
    with pytest.raises(DatasetError, match="got 100; fetch it again"):
        read_idx(tmp_path / "file")
