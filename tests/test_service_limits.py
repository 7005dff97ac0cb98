"""The HTTP service of the examples: what it refuses, how, and how it ends."""

from __future__ import annotations

import asyncio
import io
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import edgevae

from .serving import NPY, Client, health, hold, load, npy, png, post, reference, serve, until

SHAPES = "x must have shape (batch, 784) or (batch, 1, 28, 28) or (batch, 28, 28), got"
X = reference("mnist-mlp")["x"]


@pytest.fixture(scope="module")
def model() -> edgevae.Model:
    return load("mnist-mlp")


def header(shape: tuple[int, ...]) -> bytes:
    """A `.npy` file that promises more than it holds."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"1234"


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=X[:1])
    return file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def truncated_png() -> bytes:
    return png(X[0])[:-40]


REFUSED: dict[str, tuple[Callable[[], bytes], str, dict[str, Any], int, str]] = {
    "another type": (lambda: b"{}", "application/json", {}, 415, "Content-Type must be one of image/png"),
    "no type": (lambda: npy(X[:1]), "", {}, 415, "got none"),
    "too many bytes": (lambda: b"\x93NUMPY" + bytes(40_000), NPY, {}, 413, "may have 32768 bytes"),
    "too many rows": (lambda: npy(X[:9]), NPY, {}, 413, "may have 8 rows, got 9"),
    "no bytes": (lambda: b"", NPY, {}, 422, "the body is no .npy array"),
    "no array": (lambda: b"hello", NPY, {}, 422, "the body is no .npy array"),
    "an array cut off": (lambda: npy(X[:1])[:-4], NPY, {}, 422, "the body is no .npy array"),
    "a header that promises too much": (lambda: header((10**12, 784)), NPY, {}, 422, "the body is no .npy array"),
    "a header that is no header": (
        lambda: b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118,
        NPY,
        {},
        422,
        "the body is no .npy array",
    ),
    "a pickle": (pickled, NPY, {}, 422, "the body is no .npy array"),
    "an archive": (archive, NPY, {}, 422, "send one array as .npy"),
    "a number": (lambda: npy(np.float32(1)), NPY, {}, 422, f"{SHAPES} ()"),
    "another shape": (lambda: npy(X[0]), NPY, {}, 422, f"{SHAPES} (784,); add a batch axis with x[None]"),
    "out of range": (lambda: npy(X[:1] * 255), NPY, {}, 422, "x must be in [0, 1], got values from 0 to 2"),
    "integers": (lambda: npy(X[:1].astype(np.int64)), NPY, {}, 422, "x must be float32 or float64 in [0, 1]"),
    "no image": (lambda: b"hello", "image/png", {}, 422, "the body is no image/png"),
    "an image of another kind": (lambda: png(X[0], kind="GIF"), "image/png", {}, 422, "the body is no image/png"),
    "an image cut off": (truncated_png, "image/png", {}, 422, "it cannot be read as an image"),
    "an image with a damaged chunk": (
        lambda: png(X[0])[:33] + (100).to_bytes(4, "big") + png(X[0])[37:],
        "image/png",
        {},
        422,
        "it cannot be read as an image",
    ),
    "an image of another size": (
        lambda: png(X[0], (30, 28)),
        "image/png",
        {},
        422,
        "the image must be 28 wide and 28 high, got 30 by 28; resize it",
    ),
    "a label where there are none": (lambda: npy(X[:1]), NPY, {"y": 3}, 422, "y must not be given"),
    "a label that is no number": (lambda: npy(X[:1]), NPY, {"y": "three"}, 422, "pattern"),
    "a negative seed": (lambda: npy(X[:1]), NPY, {"seed": -1}, 422, "greater than or equal to 0"),
    "a seed that is too large": (lambda: npy(X[:1]), NPY, {"seed": 2**64}, 422, "less than 18446744073709551616"),
    "an option that is not there": (lambda: npy(X[:1]), NPY, {"sed": 1}, 422, "sed"),
}


@pytest.mark.parametrize("path", ["/reconstruct", "/score"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_answered_is_refused_and_says_why(what: str, path: str, model: edgevae.Model) -> None:
    body, media_type, query, status, message = REFUSED[what]

    async def talk(client: Client) -> tuple[httpx.Response, dict[str, Any]]:
        return await post(client, path, body(), media_type, **query), await health(client)

    answer, state = serve(model, talk, max_body_bytes=32768, max_rows=8)
    assert answer.status_code == status, answer.text
    assert message in str(answer.json()["detail"])
    assert "Traceback" not in answer.text
    assert (state["calls"], state["runs"], state["open"]) == (0, 0, 0)


def test_a_label_is_needed_where_the_model_sees_labels() -> None:
    x = reference("mnist-conditional")["x"]

    async def talk(client: Client) -> list[httpx.Response]:
        asked: tuple[dict[str, Any], ...] = ({}, {"y": 10}, {"y": "1,2,3"}, {"y": 3}, {"y": "1,2"})
        return [await post(client, "/score", npy(x[:2]), **query) for query in asked]

    answers = serve(load("mnist-conditional"), talk)
    assert [answer.status_code for answer in answers] == [422, 422, 422, 200, 200]
    assert answers[0].json()["detail"] == "y is needed: this model sees labels, integers from 0 to 9"


def test_a_score_that_json_cannot_hold_is_refused() -> None:
    x = np.full((1, 784), 1e30, np.float32)  # a model of standardised data takes any finite value

    async def talk(client: Client) -> httpx.Response:
        return await post(client, "/score", npy(x))

    answer = serve(load("fashion-normal"), talk)
    assert answer.status_code == 422
    assert "no finite number" in answer.json()["detail"]


def test_a_body_is_read_no_further_than_its_limit_whatever_length_it_claims(model: edgevae.Model) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10_000:
            sent += 1
            yield bytes(1024)

    async def talk(client: Client) -> httpx.Response:
        headers = {"Content-Type": NPY, "Content-Length": "10"}
        return await client.post("/score", content=endless(), headers=headers)

    assert serve(model, talk, max_body_bytes=32768).status_code == 413
    assert sent <= 34


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def png_of(width: int, height: int, *more: bytes) -> bytes:
    """A PNG, grey in 8 bits, of zeros."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    pixels = zlib.compress(bytes(min(10**6, (width + 1) * height)))
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_of_many_scans(scans: int) -> bytes:
    """A progressive JPEG which says the last of its pixels again and again."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + content[-2:]


MUCH = zlib.compress(bytes(10**8))
MOST = "may have 265280 bytes"
BOMBS: dict[str, tuple[bytes, str, int, str]] = {
    "more pixels than memory": (png_of(2**31 - 1, 2**31 - 1), "image/png", 422, "cannot be read as an image"),
    "many pixels": (png_of(9000, 9000), "image/png", 422, "must be 28 wide and 28 high, got 9000 by 9000"),
    "a hundred million bytes of text": (png_of(28, 28, chunk(b"zTXt", b"a\0\0" + MUCH)), "image/png", 422, "too large"),
    "as many of colour profile": (png_of(28, 28, chunk(b"iCCP", b"a\0\0" + MUCH)), "image/png", 422, "too large"),
    "a hundred million bytes of pixels": (png_of(28, 28, chunk(b"IDAT", MUCH)), "image/png", 200, ""),
    "as many chunks as fit": (png_of(28, 28, *[chunk(b"teXt", b"")] * 21_000), "image/png", 200, ""),
    "more chunks than that": (
        png_of(28, 28, *[chunk(b"teXt", b"")] * 30_000),
        "image/png",
        413,
        "may have 265280 bytes",
    ),
    "a file far larger than its pixels": (png(X[0]) + bytes(2**19), "image/png", 413, "may have 265280 bytes"),
    "many scans": (jpeg_of_many_scans(20_000), "image/jpeg", 422, "scans, expected at most 100; save it again"),
    "some more scans": (jpeg_of_many_scans(50), "image/jpeg", 200, ""),
}


@pytest.mark.parametrize("what", BOMBS)
def test_an_image_that_is_made_to_cost_much_costs_little(what: str, model: edgevae.Model) -> None:
    body, media_type, status, message = BOMBS[what]
    took: list[float] = []

    async def talk(client: Client) -> httpx.Response:
        start = time.process_time()
        answer = await post(client, "/score", body, media_type)
        took.append(time.process_time() - start)
        return answer

    answer = serve(model, talk)
    assert answer.status_code == status, answer.text
    assert message in answer.text
    assert "Traceback" not in answer.text
    assert took[0] < 2


def test_more_requests_than_allowed_are_sent_away_for_a_while() -> None:
    model = load("mnist-mlp")
    gate = hold(model)

    async def talk(client: Client) -> None:
        accepted = [asyncio.create_task(post(client, "/reconstruct", npy(X[:1]))) for _ in range(2)]
        await until(lambda state: state["open"] == 2, client)
        refused = await post(client, "/reconstruct", npy(X[:1]))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert (await health(client))["status"] == "ok"
        gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*accepted)] == [200, 200]
        assert (await post(client, "/reconstruct", npy(X[:1]))).status_code == 200

    serve(model, talk, max_requests=2)


def test_a_request_that_takes_too_long_is_given_up_and_does_not_run_later() -> None:
    model = load("mnist-mlp")
    gate = hold(model)

    async def talk(client: Client) -> dict[str, Any]:
        running = asyncio.create_task(post(client, "/reconstruct", npy(X[:1])))
        await until(lambda state: state["runs"] == 1, client)
        waiting = await post(client, "/reconstruct", npy(X[:1]))
        for answer in (waiting, await running):
            assert answer.status_code == 504
            assert answer.json() == {"detail": "there was no answer within 0.2 s"}
        gate.set()
        assert (await post(client, "/reconstruct", npy(X[:1]))).status_code == 200
        return await health(client)

    state = serve(model, talk, timeout_s=0.2)
    assert (state["calls"], state["runs"], state["open"]) == (3, 2, 0)


def test_a_body_that_does_not_come_to_its_end_times_out(model: edgevae.Model) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"\x93NUMPY"
        await asyncio.sleep(5)

    async def talk(client: Client) -> httpx.Response:
        return await client.post("/score", content=slow(), headers={"Content-Type": NPY})

    start = time.monotonic()
    assert serve(model, talk, timeout_s=0.1).status_code == 504
    assert time.monotonic() - start < 3


def test_at_the_end_what_runs_is_answered_and_what_waits_is_sent_away() -> None:
    model = load("mnist-mlp")
    gate = hold(model)
    before = {thread.name for thread in threading.enumerate()}

    async def talk(client: Client) -> asyncio.Future[tuple[httpx.Response, httpx.Response]]:
        running = asyncio.create_task(post(client, "/reconstruct", npy(X[:1])))
        await until(lambda state: state["runs"] == 1, client)
        waiting = asyncio.create_task(post(client, "/reconstruct", npy(X[:1])))
        await until(lambda state: state["waiting"] == 1, client)
        asyncio.get_running_loop().call_later(0.1, gate.set)  # after the end has begun
        return asyncio.gather(running, waiting)

    answers = serve(model, talk).result()
    assert [answer.status_code for answer in answers] == [200, 503]
    np.testing.assert_array_equal(np.load(io.BytesIO(answers[0].content)), model.reconstruct(X[:1]))
    assert {thread.name for thread in threading.enumerate()} <= before
