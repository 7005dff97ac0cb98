"""Image files: what a training and the runtime both read is the same to both, and what they do not is their error.

The first byte says how many channels the model has, and whether images are resized.
"""

from __future__ import annotations

import functools
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevae import InputError
from edgevae.images import FORMATS, read_image
from edgevae.train import DatasetError
from edgevae.train.data.sources import open_folder
from tests.fuzz.target import Target

SIDE = 8
WORDS = [b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"acTL", b"\xff\xd8\xff", b"\xff\xc0", b"II*\0", b"WEBP", b"%!PS", b"BM"]


def make(work: Path) -> Target:
    grey = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
    images = [Image.fromarray(grey), Image.fromarray(np.stack([grey] * 3, -1)), Image.fromarray(grey).convert("P")]
    images += [Image.fromarray(grey.astype(np.uint16) * 256), Image.fromarray(grey).resize((5, 9))]
    seeds = []
    for image, name, kind in itertools.product(images, FORMATS, range(4)):
        file = io.BytesIO()
        try:
            image.save(file, name)
        except (OSError, ValueError, KeyError):  # not each format holds each kind of image
            continue
        seeds.append(bytes([kind]) + file.getvalue())
    return Target(functools.partial(check, work), seeds, WORDS)


def check(work: Path, data: bytes) -> None:
    kind, content = (data[0] if data else 0), data[1:]
    channels, size = 3 if kind & 1 else 1, (SIDE, SIDE) if kind & 2 else None
    try:
        ours: NDArray[Any] | None = read_image(io.BytesIO(content), (channels, SIDE, SIDE), resize=size is not None)
    except InputError:
        ours = None
    (work / "images").mkdir(exist_ok=True)
    (work / "images" / "x.png").write_bytes(content)
    try:
        rows = open_folder(work / "images", size, grey=channels == 1, labels=False).rows
    except DatasetError:
        return
    assert ours is None or ours.shape == (channels, SIDE, SIDE)
    if ours is not None and rows.shape[1:] == ours.shape:
        scaled = ours.astype(np.float32) / np.float32(255) if ours.dtype == np.uint8 else ours
        np.testing.assert_allclose(scaled, rows[:1].numpy()[0], atol=1e-6)
