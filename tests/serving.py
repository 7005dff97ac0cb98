"""The HTTP service of the examples, run in the process of its tests; and the bodies of requests."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

import edgevae

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))  # as Python does for `python examples/service.py`

from service import create_app

REPOSITORY = Path(__file__).parent.parent
T = TypeVar("T")
Client = httpx.AsyncClient
NPY = "application/x-npy"


def load(name: str) -> edgevae.Model:
    return edgevae.load(REPOSITORY / "models" / name, provider="cpu", threads=1)


def reference(name: str) -> dict[str, NDArray[Any]]:
    with np.load(REPOSITORY / "models" / name / "reference.npz") as arrays:
        return {key: arrays[key] for key in ("x", "y") if key in arrays}


def serve(model: edgevae.Model, talk: Callable[[Client], Awaitable[T]], **limits: Any) -> T:
    """Talk to the service."""

    async def run() -> T:
        transport = httpx.ASGITransport(create_app(model, **limits), raise_app_exceptions=False)
        async with Client(transport=transport, base_url="http://service") as client:
            return await talk(client)

    return asyncio.run(run())


def npy(array: ArrayLike) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def png(row: NDArray[np.float32], size: tuple[int, int] = (28, 28), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray((row.reshape(28, 28) * 255).astype(np.uint8)).resize(size).save(file, kind)
    return file.getvalue()


async def post(client: Client, path: str, body: Any, media_type: str = NPY, **query: Any) -> httpx.Response:
    return await client.post(path, content=body, headers={"Content-Type": media_type}, params=query)
