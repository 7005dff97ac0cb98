"""A model as an HTTP service: `python examples/service.py models/mnist-mlp --port 8000`.

    curl --data-binary @image.png -H 'Content-Type: image/png' localhost:8000/score
    curl --data-binary @rows.npy -H 'Content-Type: application/x-npy' 'localhost:8000/reconstruct?seed=0' -o out.npy

Send one image (PNG or JPEG) or a `.npy` array of several rows; requests that are too large or too slow are refused.
Each request is a run of its own: for batching use a model server. Put a proxy in front for TLS and authentication, and
against clients that send headers or take answers slowly. Needs `pip install 'edgevae[cpu,examples]'`.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Callable
from pathlib import Path
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

IMAGES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}  # type, and how such a file begins
MEDIA_TYPES = (*IMAGES, "application/x-npy")
BODY = {"requestBody": {"required": True, "content": {media_type: {} for media_type in MEDIA_TYPES}}}


class Options(BaseModel, extra="forbid"):
    """The query of a request: the seed of the noise, and the label of all rows."""

    seed: Annotated[int | None, Field(ge=0, lt=2**64)] = None
    y: Annotated[int | None, Field(ge=0, lt=2**31)] = None


def decode(body: bytes, media_type: str, data_shape: tuple[int, ...]) -> NDArray[Any]:
    """Read an image or an array; the model checks shape, dtype and range."""
    if media_type in IMAGES:
        if not body.startswith(IMAGES[media_type]):
            raise edgevae.InputError(f"the body is not {media_type}")
        return read_image(io.BytesIO(body), data_shape)[None]
    try:
        return np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
    except Exception as error:  # damaged files make NumPy raise anything from ValueError to MemoryError
        raise edgevae.InputError(f"the body is not a .npy array: {error}") from error


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body, counted as it comes: Content-Length may be wrong or missing."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise HTTPException(413, f"the body may have {max_bytes} bytes", {"Connection": "close"})
    return bytes(body)


def create_app(  # noqa: C901 - the routes share one model and its limits
    model: edgevae.Model, *, max_body_bytes: int = 2**20, max_rows: int = 1024, timeout_s: float = 10.0
) -> FastAPI:
    """Return the service: 413 for larger bodies and more rows, 504 for what takes longer than `timeout_s` in all."""
    app, threshold = FastAPI(title=f"EdgeVAE: {model.manifest.name}"), model.threshold()

    async def answer(request: Request, run: Callable[[NDArray[Any]], Response]) -> Response:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in MEDIA_TYPES:
            raise HTTPException(415, f"Content-Type must be one of {', '.join(MEDIA_TYPES)}, got {media_type!r}")

        async def read_and_run() -> Response:
            x = await asyncio.to_thread(decode, await read_body(request, max_body_bytes), media_type, model.data_shape)
            if (rows := x.size // math.prod(model.data_shape)) > max_rows:
                raise HTTPException(413, f"a request may have {max_rows} rows, got {rows}; send several requests")
            return await asyncio.to_thread(run, x)

        try:
            return await asyncio.wait_for(read_and_run(), timeout_s)
        except asyncio.TimeoutError as error:
            raise HTTPException(504, f"no answer within {timeout_s:g} s", {"Connection": "close"}) from error

    @app.post("/reconstruct", openapi_extra=BODY)
    async def reconstruct(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Answer a `.npy` array: a sample of the posterior decoded, or without a seed its mean."""

        def run(x: NDArray[Any]) -> Response:
            file = io.BytesIO()
            np.save(file, model.reconstruct(x, y=options.y, seed=options.seed))
            return Response(file.getvalue(), media_type="application/x-npy")

        return await answer(request, run)

    @app.post("/score", openapi_extra=BODY)
    async def score(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Answer JSON: how usual each row is, in nats, and which rows are anomalies."""

        def run(x: NDArray[Any]) -> Response:
            found = model.score(x, options.seed or 0, y=options.y)
            if not np.isfinite(found.elbo).all():
                raise edgevae.InputError("the ELBO is not finite; is x in the units of the training data?")
            arrays = {"elbo": found.elbo, "reconstruction": found.reconstruction, "kl": found.kl}
            lists = {name: array.tolist() for name, array in arrays.items()}
            return JSONResponse({**lists, "is_anomaly": found.below(threshold).tolist(), "threshold": threshold})

        return await answer(request, run)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say which model runs where."""
        return {"status": "ok", "model": model.manifest.name, "provider": model.provider}

    @app.exception_handler(edgevae.InputError)
    async def refuse(_request: Request, error: edgevae.InputError) -> Response:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(ClientDisconnect)
    async def ignore(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    return app


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 for any free port.")
@click.option("--max-body-bytes", type=click.IntRange(min=1), default=2**20, help="Size of a request.")
@click.option("--max-rows", type=click.IntRange(min=1), default=1024, help="Rows in a request.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=10.0, help="Seconds a request."
)
@click.option("--max-connections", type=click.IntRange(min=1), default=256, help="Beyond them the answer is 503.")
def main(bundle: Path, host: str, port: int, max_connections: int, **limits: Any) -> None:
    """Serve the model in the folder BUNDLE until a signal ends it."""
    try:
        app = create_app(edgevae.load(bundle, threads=1), **limits)
    except edgevae.EdgeVAEError as error:
        raise click.ClickException(str(error)) from error
    # h11 refuses headers of more than 64 KiB.
    uvicorn.run(app, host=host, port=port, http="h11", ws="none", limit_concurrency=max_connections)


if __name__ == "__main__":
    main()
