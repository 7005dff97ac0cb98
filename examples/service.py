"""A model as an HTTP service: `python examples/service.py models/mnist-mlp --port 8000`.

    curl --data-binary @image.png -H 'Content-Type: image/png' 'localhost:8000/score'
    curl --data-binary @image.png -H 'Content-Type: image/png' 'localhost:8000/reconstruct?seed=0' -o reconstructed.png
    curl --data-binary @rows.npy -H 'Content-Type: application/x-npy' localhost:8000/reconstruct -o reconstructed.npy
    curl localhost:8000/health

What is sent is one image, PNG or JPEG, or a `.npy` array of several rows; `/reconstruct` answers a PNG or a `.npy`, and
`/score` JSON. The answers are those of `model.reconstruct` and `model.score`, though requests that come at the same
time share a run of the model. Requests that are too large, too many or too slow, and what is no image, are refused with
the status code that HTTP has for it and a sentence that says why. Needs `pip install 'edgevae[cpu,examples]'`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import click
import numpy as np
import uvicorn
from batching import Batcher, ClosedError
from connections import impatient
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from formats import ARRAYS, IMAGES, decode, encode, max_image_bytes
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

import edgevae

RETRY = {"Retry-After": "1"}
KEEP_ALIVE_S = HEAD_S = 5  # seconds that a client may be silent between requests, and take to send the head of one
BODY = {"requestBody": {"required": True, "content": {media_type: {} for media_type in (*IMAGES, *ARRAYS)}}}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Args:
        max_body_bytes: Size of a body; 413 above. For an image it is less, by the size of an observation.
        max_rows: Rows in a request, and in a run that requests share; 413 above.
        max_requests: Requests that are being read or wait for the model; 503 above. With `max_body_bytes` it bounds the
            memory.
        timeout_s: From the end of the head to the answer; 504 after.
    """

    max_body_bytes: int = 8 * 2**20
    max_rows: int = 1024
    max_requests: int = 256
    timeout_s: float = 10.0


class Options(BaseModel, extra="forbid"):
    """The query: an option that is not there is refused, so that a mistyped one is not passed over in silence."""

    seed: Annotated[
        int | None, Field(ge=0, lt=2**64, description="Noise stream. Without it: the mean; to score, 0.")
    ] = None
    y: Annotated[str | None, Field(pattern=r"^\d{1,9}(,\d{1,9})*$", description="Label, or one a row: 3,1,4.")] = None


Handler: TypeAlias = "Callable[[Service, Request, Annotated[Options, Query()]], Awaitable[Response]]"


def limited(handler: Handler) -> Handler:
    """Hold a handler to the limits on the number of requests and on their time."""

    @functools.wraps(handler)  # FastAPI reads from it what the handler takes
    async def within_limits(service: Service, request: Request, options: Annotated[Options, Query()]) -> Response:
        limits = service.limits
        if service.open_requests >= limits.max_requests:
            raise HTTPException(503, f"{limits.max_requests} requests are open already; try again", RETRY)
        service.open_requests += 1
        try:
            return await asyncio.wait_for(handler(service, request, options), limits.timeout_s)
        except asyncio.TimeoutError as error:
            raise HTTPException(504, f"there was no answer within {limits.timeout_s:g} s") from error
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        except ClosedError as error:
            raise HTTPException(503, str(error), RETRY) from error
        finally:
            service.open_requests -= 1

    return within_limits


class Service:
    """What the routes do.

    Args:
        model: The model.
        limits: What a request may cost.
        rate: Part of the test images that `/score` may call anomalies.
        batching: Whether requests that come at the same time share a run.
    """

    def __init__(self, model: edgevae.Model, limits: Limits, rate: float, *, batching: bool) -> None:
        self.limits = limits
        self.open_requests = 0
        self.batcher = Batcher(model, limits.max_rows, together=batching)
        self._model = model
        self._threshold = model.threshold(rate)

    @limited
    async def reconstruct(self, request: Request, options: Annotated[Options, Query()]) -> Response:
        """Encode, sample and decode: an image is answered as a PNG, an array as an array of float32."""
        x = await self._observations(request)
        loc_img = await self.batcher.reconstruct(x, y=labels(options.y), seed=options.seed)
        file, kind = encode(loc_img, media_type(request), self._model.data_shape)
        return Response(file, media_type=kind)

    @limited
    async def score(self, request: Request, options: Annotated[Options, Query()]) -> Response:
        """Say how usual each row is, in nats, and whether it lies below the threshold."""
        x = await self._observations(request)
        found = await self.batcher.score(x, y=labels(options.y), seed=options.seed or 0)
        if not np.isfinite(found.elbo).all():
            raise edgevae.InputError("x is so far from what the model knows that its ELBO is no finite number")
        columns = (found.elbo, found.reconstruction, found.kl, found.below(self._threshold))
        names = ("elbo", "reconstruction", "kl", "is_anomaly")
        rows = [
            dict(zip(names, row, strict=True)) for row in zip(*(column.tolist() for column in columns), strict=True)
        ]
        return JSONResponse({"threshold": self._threshold, "rows": rows})

    async def health(self) -> dict[str, str | int]:
        """Answer while the service lives, also while the model runs; `calls` and `runs` are counts since the start."""
        state = {"open": self.open_requests, "waiting": self.batcher.waiting}
        done = {"calls": self.batcher.calls, "runs": self.batcher.runs}
        return {"status": "ok", "model": self._model.manifest.name, "provider": self._model.provider, **state, **done}

    async def _observations(self, request: Request) -> NDArray[Any]:
        data_shape = self._model.data_shape
        kind, max_bytes = media_type(request), self.limits.max_body_bytes
        if kind in IMAGES:
            max_bytes = min(max_bytes, max_image_bytes(data_shape))
        # While it decodes, the event loop stands still; the limit on the body is a limit on that too.
        x = decode(await read_body(request, max_bytes), kind, data_shape)
        rows = x.size // math.prod(data_shape)
        if rows > self.limits.max_rows:
            raise HTTPException(413, f"a request may have {self.limits.max_rows} rows, got {rows}; send several")
        return x


def create_app(
    model: edgevae.Model, limits: Limits | None = None, *, rate: float = 0.01, batching: bool = True
) -> FastAPI:
    """Return the application; the arguments are those of `Service`."""
    service = Service(model, limits or Limits(), rate, batching=batching)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.batcher.close()

    async def refuse(_request: Request, error: Exception) -> Response:
        if isinstance(error, edgevae.InputError):
            return JSONResponse({"detail": str(error)}, 422)
        logging.getLogger("uvicorn.error").error("the model failed: %s", error)
        return JSONResponse({"detail": "the model failed; the request is not at fault"}, 500)

    app = FastAPI(title=f"EdgeVAE: {model.manifest.name}", lifespan=lifespan)
    app.add_exception_handler(edgevae.EdgeVAEError, refuse)
    app.add_api_route("/reconstruct", service.reconstruct, methods=["POST"], openapi_extra=BODY)
    app.add_api_route("/score", service.score, methods=["POST"], openapi_extra=BODY)
    app.add_api_route("/health", service.health)
    return app


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request, if it is of a type and size that is taken."""
    kind = media_type(request)
    if kind not in IMAGES and kind not in ARRAYS:
        raise HTTPException(415, f"Content-Type must be one of {', '.join((*IMAGES, *ARRAYS))}, got {kind or 'none'}")
    body = bytearray()
    async for chunk in request.stream():  # counted as it comes: what Content-Length says may be wrong, or missing
        body += chunk
        if len(body) > max_bytes:
            # The rest of the body is still coming, and the connection is of no more use.
            closing = {"Connection": "close"}
            raise HTTPException(413, f"the body may have {max_bytes} bytes; send less at once", closing)
    return bytes(body)


def media_type(request: Request) -> str:
    """Return the type of a request's body, without parameters like charset."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def labels(y: str | None) -> NDArray[np.int64] | None:
    """Read labels: `3` stands for all rows, `3,1,4` for three."""
    if y is None:
        return None
    values = np.array(y.split(","), np.int64)
    return values if "," in y else values.reshape(())


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port; 0 for any that is free.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, help="Threads of the model; HTTP needs a core too.")
@click.option("--rate", type=float, default=0.01, help="Part of the test images that may be called anomalies.")
@click.option("--max-body-bytes", type=click.IntRange(min=1), default=Limits.max_body_bytes)
@click.option("--max-rows", type=click.IntRange(min=1), default=Limits.max_rows, help="In a request, and in a run.")
@click.option("--max-requests", type=click.IntRange(min=1), default=Limits.max_requests, help="Open at the same time.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=Limits.timeout_s)
@click.option("--batching/--no-batching", default=True, help="Whether requests share runs of the model.")
def main(bundle: Path, host: str, port: int, threads: int, rate: float, batching: bool, **limits: Any) -> None:
    """Serve the model in the folder BUNDLE until a signal comes; requests that are open then are still answered."""
    try:
        with edgevae.load(bundle, threads=threads) as model:
            model.warm_up()
            app = create_app(model, Limits(**limits), rate=rate, batching=batching)
            grace_s = math.ceil(limits["timeout_s"])  # for what is still open when the signal comes
            uvicorn.run(
                app,
                host=host,
                port=port,
                # Applications see neither heads nor whether an answer is taken: these limits are the server's.
                http=impatient(KEEP_ALIVE_S + HEAD_S + limits["timeout_s"], 2 * limits["max_body_bytes"] + 2**16),
                ws="none",
                limit_concurrency=4 * limits["max_requests"],
                timeout_keep_alive=KEEP_ALIVE_S,
                access_log=False,
                timeout_graceful_shutdown=grace_s,
            )
    except edgevae.EdgeVAEError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
