"""A model as an HTTP service: `python examples/service.py models/mnist-mlp --port 8000`.

    curl --data-binary @image.png localhost:8000/score
    curl --data-binary @rows.npy 'localhost:8000/reconstruct?seed=0' -o out.npy

A request holds one image, or several rows as a `.npy` array. Each is a run of its own: for batching use a model server.
Put a proxy in front for TLS and authentication. Needs `pip install 'edgevae[cpu,examples]'`.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Callable
from typing import Annotated, Any

import click
import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

import edgevae
from edgevae.images import read_image


class Options(BaseModel, extra="forbid"):
    """The query of a request: the seed of the noise, and the label of all rows."""

    seed: Annotated[int | None, Field(ge=0, lt=2**64)] = None
    y: Annotated[int | None, Field(ge=0, lt=2**31)] = None


def decode(body: bytes, data_shape: tuple[int, ...]) -> NDArray[Any]:
    """Read an array or an image; the model checks shape, dtype and range."""
    if not body.startswith(np.lib.format.MAGIC_PREFIX):
        return read_image(io.BytesIO(body), data_shape)[None]
    try:
        return np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
    except Exception as error:  # damaged files make NumPy raise anything from ValueError to MemoryError
        raise edgevae.InputError(f"the body is not a .npy array: {error}") from error


def create_app(  # noqa: C901 - the routes share one model and its limits
    model: edgevae.Model, *, max_body_bytes: int = 2**20, max_rows: int = 1024, timeout_s: float = 10.0
) -> FastAPI:
    """Return the service: 413 for larger bodies and more rows, 504 for what takes longer than `timeout_s` in all."""
    app, threshold = FastAPI(title=f"EdgeVAE: {model.manifest.name}"), model.threshold()

    async def read_and_run(request: Request, run: Callable[[NDArray[Any]], Response]) -> Response:
        body = bytearray()
        async for chunk in request.stream():  # counted as it comes: Content-Length may be wrong or missing
            body += chunk
            if len(body) > max_body_bytes:
                raise HTTPException(413, f"the body may have {max_body_bytes} bytes", {"Connection": "close"})
        x = await asyncio.to_thread(decode, bytes(body), model.data_shape)
        if (rows := x.size // math.prod(model.data_shape)) > max_rows:
            raise HTTPException(413, f"a request may have {max_rows} rows, got {rows}; send several requests")
        return await asyncio.to_thread(run, x)

    async def answer(request: Request, run: Callable[[NDArray[Any]], Response]) -> Response:
        try:
            return await asyncio.wait_for(read_and_run(request, run), timeout_s)
        except asyncio.TimeoutError as error:
            raise HTTPException(504, f"no answer within {timeout_s:g} s", {"Connection": "close"}) from error

    @app.post("/reconstruct")
    async def reconstruct(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Answer a `.npy` array: a sample of the posterior decoded, or without a seed its mean."""

        def run(x: NDArray[Any]) -> Response:
            np.save(file := io.BytesIO(), model.reconstruct(x, y=options.y, seed=options.seed))
            return Response(file.getvalue(), media_type="application/x-npy")

        return await answer(request, run)

    @app.post("/score")
    async def score(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Answer JSON: how usual each row is, in nats (`null` if float32 cannot hold it), and which are anomalies."""

        def run(x: NDArray[Any]) -> Response:
            found = model.score(x, options.seed or 0, y=options.y)
            is_anomaly = found.below(threshold).tolist()
            return JSONResponse({**found.to_dict(), "is_anomaly": is_anomaly, "threshold": threshold})

        return await answer(request, run)

    @app.exception_handler(edgevae.InputError)
    async def refuse(_request: Request, error: edgevae.InputError) -> Response:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(ClientDisconnect)
    async def ignore(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    return app


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(exists=True))
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 for any free port.")
@click.option("--max-connections", type=click.IntRange(min=1), default=256, help="Beyond them the answer is 503.")
def main(bundle: str, port: int, max_connections: int) -> None:
    """Serve the model in the folder BUNDLE on this machine until a signal ends it."""
    # h11 refuses headers of more than 64 KiB.
    app = create_app(edgevae.load(bundle, threads=1))
    uvicorn.run(app, port=port, http="h11", ws="none", limit_concurrency=max_connections)


if __name__ == "__main__":
    main()
