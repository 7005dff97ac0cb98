"""The HTTP service of the examples in the process of its tests, and what is sent to it."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

import edgevae

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))  # as Python does for `python examples/service.py`

from service import Limits, create_app

REPOSITORY = Path(__file__).parent.parent
T = TypeVar("T")
Client = httpx.AsyncClient
NPY = "application/x-npy"


def load(name: str) -> edgevae.Model:
    return edgevae.load(REPOSITORY / "models" / name, provider="cpu", threads=1)


def reference(name: str) -> dict[str, NDArray[Any]]:
    with np.load(REPOSITORY / "models" / name / "reference.npz") as arrays:
        return {key: arrays[key] for key in ("x", "y") if key in arrays}


def hold(model: edgevae.Model) -> threading.Event:
    """Let the model's reconstructions begin only when the event that is returned is set."""
    opened, reconstruct = threading.Event(), model.reconstruct

    def wait_and_reconstruct(*args: Any, **options: Any) -> NDArray[np.float32]:
        assert opened.wait(10)
        return reconstruct(*args, **options)

    model.reconstruct = wait_and_reconstruct  # type: ignore[method-assign]  # of this one object
    return opened


def serve(model: edgevae.Model, talk: Callable[[Client], Awaitable[T]], *, batching: bool = True, **limits: Any) -> T:
    """Talk to the service from its start to its end."""
    app = create_app(model, Limits(**limits), batching=batching)

    async def run() -> T:
        transport = httpx.ASGITransport(app)
        async with Client(transport=transport, base_url="http://service") as client, app.router.lifespan_context(app):
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


async def health(client: Client) -> dict[str, Any]:
    answer = await client.get("/health")
    assert answer.status_code == 200
    return answer.json()


async def until(condition: Callable[[dict[str, Any]], bool], client: Client) -> None:
    """Wait until the service's health is as wanted."""
    for _ in range(500):
        if condition(await health(client)):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(await health(client))
