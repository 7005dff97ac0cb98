"""`reference.npz`: any bytes are arrays of numbers, as many rows each, or a `BundleError`.

The first byte says what the rest is: the whole file, or one array in a file that is otherwise good. Damage to the whole
file seldom gets past its checksums.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevae import BundleError, Reference, tensor
from tests.fuzz.target import Target

ROWS = 3
WORDS = [
    b"'descr': ",
    b"'fortran_order': ",
    b"'shape': ",
    b"True",
    b"'<f4'",
    b"'|O'",
    b"'<i8'",
    b"(2147483648,)",
    b"()",
]


def make(_work: Path) -> Target:
    whole = Reference(np.array(["sample", "zeros", "ones"]), {"x": np.ones((ROWS, 4), np.float32)}).encode()
    arrays: list[NDArray[Any]] = [
        np.ones((ROWS, 4), np.float32),
        np.arange(ROWS),
        np.zeros((0, 2)),
        np.zeros((ROWS, 0, 2, 2), np.float32),
        np.array(["a"] * ROWS),
    ]
    return Target(check, [b"\0" + whole, *(b"\1" + npy(array) for array in arrays)], WORDS)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**members: bytes) -> bytes:
    """Return a `.npz` file with members of any content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def check(data: bytes) -> None:
    whole = data[:1] == b"\0"
    content = data[1:] if whole else npz(case=npy(np.array(["sample"] * ROWS)), x=data[1:])
    with contextlib.suppress(BundleError):
        reference = Reference.decode(content, {"x": tensor("x", 4)} if len(data) % 2 else None)
        for array in reference.arrays.values():
            assert array.dtype in (np.float32, np.int64)
            assert len(array) == len(reference.case)
