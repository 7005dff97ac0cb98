"""Files of arrays, as a training, the command line and `Latents` read them: numbers, or a documented error.

The first byte says which reader gets the rest, and whether it is the whole file or an array inside one.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from edgevae import InputError, Latents
from edgevae.arrays import open_idx
from edgevae.train import DatasetError
from edgevae.train.data.sources import open_array
from tests.fuzz.reference import WORDS, npy, npz
from tests.fuzz.target import Target

ROWS = 3
X = np.linspace(0, 1, ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
Y = np.arange(ROWS)
PIXELS = np.arange(ROWS * 4, dtype=np.uint8).reshape(ROWS, 2, 2)


def make(work: Path) -> Target:
    arrays = [
        npy(array)
        for array in (X, Y, X.astype(np.float64), X.astype(">f4"), PIXELS, PIXELS.astype(bool), np.asfortranarray(X))
    ]
    seeds = [
        *(bytes([reader]) + array for reader in (0, 1, 2, 3, 4) for array in arrays),
        *(bytes([reader]) + npz(x=npy(X), y=npy(Y), z=npy(X)) for reader in (5, 6)),
        *(bytes([reader]) + idx(array) for reader in (7, 8, 9, 10) for array in (PIXELS, PIXELS[:, 0, 0], PIXELS[:0])),
        *(bytes([reader]) + gzip.compress(idx(PIXELS), mtime=0) for reader in (11, 12)),
    ]
    return Target(functools.partial(check, work), seeds, WORDS)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def check(work: Path, data: bytes) -> None:
    content = data[1:]
    packed = functools.partial(gzip.compress, compresslevel=1, mtime=0)
    readers: list[Callable[[], None]] = [
        lambda: train_on(work / "x.npy", content),
        lambda: train_on(work / "x.npy", npy(X), content),
        lambda: train_on(work / "x.npz", npz(x=content, y=npy(Y))),
        lambda: train_on(work / "x.npz", npz(x=npy(X), y=content)),
        lambda: latents(work, npz(z=content)),
        lambda: train_on(work / "x.npz", content),
        lambda: latents(work, content),
        lambda: train_on(work / "x-ubyte", content),
        lambda: train_on(work / "x-ubyte", packed(content)),
        lambda: command_line(work / "x-ubyte", content),
        lambda: command_line(work / "x-ubyte.gz", packed(content)),
        lambda: train_on(work / "x-ubyte", content),
        lambda: command_line(work / "x-ubyte.gz", content),
    ]
    readers[(data[0] if data else 0) % len(readers)]()


def train_on(path: Path, content: bytes, labels: bytes | None = None) -> None:
    path.write_bytes(content)
    if labels is not None:
        path.with_name("x-labels.npy").write_bytes(labels)
    with contextlib.suppress(DatasetError):
        source = open_array(path, None, labels is not None or path.suffix == ".npz")
        some = source.rows[:ROWS]
        assert some.dtype == torch.float32
        assert some.isfinite().all()
        if source.labels is not None:
            assert source.labels.shape == (len(source.rows),)
            assert source.labels.min() >= 0


def latents(work: Path, content: bytes) -> None:
    (work / "z.npz").write_bytes(content)
    with contextlib.suppress(InputError):
        Latents.load(work / "z.npz")


def command_line(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert open_idx(path).dtype == np.uint8
