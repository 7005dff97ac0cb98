"""The HTTP service of the examples: the answers of direct calls, and limits on bytes, rows and time."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import edgevae

from .serving import NPY, REPOSITORY, Client, load, npy, png, post, reference, serve

SHAPES = "x must have shape (batch, 784) or (batch, 1, 28, 28) or (batch, 28, 28), got"
X = reference("mnist-mlp")["x"]


@pytest.fixture(scope="module")
def model() -> edgevae.Model:
    return load("mnist-mlp")


@pytest.mark.parametrize("name", ["mnist-mlp", "mnist-conditional", "mnist-hierarchical", "mnist-mixture"])
def test_requests_at_the_same_time_get_the_answers_of_direct_calls(name: str) -> None:
    model, arrays = load(name), reference(name)

    async def ask(client: Client, index: int) -> None:
        x, y = arrays["x"][index : index + 1 + index % 5], index % 10 if "y" in arrays else None
        query: dict[str, Any] = {} if y is None else {"y": y}
        answer = await post(client, "/reconstruct", npy(x), seed=index, **query)
        assert answer.status_code == 200, answer.text
        found = np.load(io.BytesIO(answer.content))
        np.testing.assert_allclose(found, model.reconstruct(x, y=y, seed=index), atol=1e-6)
        mean = await post(client, "/reconstruct", npy(x), **query)
        np.testing.assert_allclose(np.load(io.BytesIO(mean.content)), model.reconstruct(x, y=y), atol=1e-6)
        check_score(
            (await post(client, "/score", npy(x), seed=index, **query)).json(), model, model.score(x, index, y=y)
        )

    async def talk(client: Client) -> None:
        await asyncio.gather(*(ask(client, index) for index in range(16)))

    serve(model, talk)


def check_score(answer: dict[str, Any], model: edgevae.Model, expected: edgevae.Score) -> None:
    for name in ("elbo", "reconstruction", "kl"):
        np.testing.assert_allclose(answer[name], getattr(expected, name), rtol=1e-6)
    assert answer["threshold"] == model.threshold()
    assert answer["is_anomaly"] == expected.below(model.threshold()).tolist()


@pytest.mark.parametrize(("kind", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
def test_an_image_is_one_observation(kind: str, media_type: str, model: edgevae.Model) -> None:
    body = png(X[0], kind=kind)
    sent = np.asarray(Image.open(io.BytesIO(body))).reshape(1, 28, 28)

    async def talk(client: Client) -> None:
        answer = await post(client, "/reconstruct", body, media_type, seed=3)
        np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), model.reconstruct(sent, seed=3))
        check_score((await post(client, "/score", body, media_type)).json(), model, model.score(sent))

    serve(model, talk)


def test_a_failure_of_the_model_is_an_answer_without_a_traceback(
    model: edgevae.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise edgevae.EdgeVAEError("cuda failed in encoder.onnx: out of memory")

    async def talk(client: Client) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(model, "reconstruct", fail)
            answer = await post(client, "/reconstruct", npy(X[:1]))
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")
        assert (await post(client, "/reconstruct", npy(X[:1]))).status_code == 200

    serve(model, talk)


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
    "too many bytes": (lambda: b"\x93NUMPY" + bytes(40_000), NPY, {}, 413, "may have 32768 bytes"),
    "too many rows": (lambda: npy(X[:9]), NPY, {}, 413, "may have 8 rows, got 9"),
    "no bytes": (lambda: b"", NPY, {}, 422, "the image cannot be read"),
    "neither array nor image": (lambda: b"hello", NPY, {}, 422, "the image cannot be read"),
    "an array cut off": (lambda: npy(X[:1])[:-4], NPY, {}, 422, "the body is not a .npy array"),
    "a header that promises too much": (lambda: header((10**12, 784)), NPY, {}, 422, "the body is not a .npy array"),
    "a header that is no header": (
        lambda: b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118,
        NPY,
        {},
        422,
        "the body is not a .npy array",
    ),
    "a pickle": (pickled, NPY, {}, 422, "the body is not a .npy array"),
    "an archive": (archive, NPY, {}, 422, "the image cannot be read"),
    "a number": (lambda: npy(np.float32(1)), NPY, {}, 422, f"{SHAPES} ()"),
    "another shape": (lambda: npy(X[0]), NPY, {}, 422, f"{SHAPES} (784,); add a batch axis with x[None]"),
    "out of range": (lambda: npy(X[:1] * 255), NPY, {}, 422, "x must be in [0, 1], got values from 0 to 2"),
    "integers": (lambda: npy(X[:1].astype(np.int64)), NPY, {}, 422, "x must be float"),
    "an image cut off": (truncated_png, "image/png", {}, 422, "the image cannot be read"),
    "an image with a damaged chunk": (
        lambda: png(X[0])[:33] + (100).to_bytes(4, "big") + png(X[0])[37:],
        "image/png",
        {},
        422,
        "the image cannot be read",
    ),
    "an image of another size": (
        lambda: png(X[0], (30, 28)),
        "image/png",
        {},
        422,
        "the image must be 28 wide and 28 high, got 30 by 28; resize it",
    ),
    "a label where there are none": (lambda: npy(X[:1]), NPY, {"y": 3}, 422, "y must not be given"),
    "a label that is no number": (lambda: npy(X[:1]), NPY, {"y": "three"}, 422, "valid integer"),
    "a label that is too large": (lambda: npy(X[:1]), NPY, {"y": 10**30}, 422, "less than"),
    "a negative seed": (lambda: npy(X[:1]), NPY, {"seed": -1}, 422, "greater than or equal to 0"),
    "a seed that is too large": (lambda: npy(X[:1]), NPY, {"seed": 2**64}, 422, "less than 18446744073709551616"),
    "an option that is not there": (lambda: npy(X[:1]), NPY, {"sed": 1}, 422, "sed"),
}


@pytest.mark.parametrize("path", ["/reconstruct", "/score"])
@pytest.mark.parametrize("what", REFUSED)
def test_bad_requests_are_refused_with_the_reason(what: str, path: str, model: edgevae.Model) -> None:
    body, media_type, query, status, message = REFUSED[what]

    async def talk(client: Client) -> httpx.Response:
        return await post(client, path, body(), media_type, **query)

    answer = serve(model, talk, max_body_bytes=32768, max_rows=8)
    assert answer.status_code == status, answer.text
    assert message in str(answer.json()["detail"])
    assert "Traceback" not in answer.text


def test_a_label_is_needed_where_the_model_sees_labels() -> None:
    x = reference("mnist-conditional")["x"]

    async def talk(client: Client) -> list[httpx.Response]:
        asked: tuple[dict[str, Any], ...] = ({}, {"y": 10}, {"y": 3})
        return [await post(client, "/score", npy(x[:2]), **query) for query in asked]

    answers = serve(load("mnist-conditional"), talk)
    assert [answer.status_code for answer in answers] == [422, 422, 200]
    assert answers[0].json()["detail"] == "y is needed: this model sees labels, integers from 0 to 9"


def test_a_score_that_json_cannot_hold_is_null_and_an_anomaly() -> None:
    x = np.full((1, 784), 1e30, np.float32)  # a model of standardised data takes any finite value

    async def talk(client: Client) -> httpx.Response:
        return await post(client, "/score", npy(x))

    answer = serve(load("fashion-normal"), talk)
    assert answer.status_code == 200
    assert (answer.json()["elbo"], answer.json()["is_anomaly"]) == ([None], [True])


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
BOMBS: dict[str, tuple[bytes, str, int, str]] = {
    "more pixels than memory": (png_of(2**31 - 1, 2**31 - 1), "image/png", 422, "the image cannot be read"),
    "many pixels": (png_of(9000, 9000), "image/png", 422, "must be 28 wide and 28 high, got 9000 by 9000"),
    "a hundred million bytes of text": (png_of(28, 28, chunk(b"zTXt", b"a\0\0" + MUCH)), "image/png", 422, "too large"),
    "as many of colour profile": (png_of(28, 28, chunk(b"iCCP", b"a\0\0" + MUCH)), "image/png", 422, "too large"),
    "a hundred million bytes of pixels": (png_of(28, 28, chunk(b"IDAT", MUCH)), "image/png", 200, ""),
    "as many chunks as fit": (png_of(28, 28, *[chunk(b"teXt", b"")] * 85_000), "image/png", 200, ""),
    "more chunks than that": (
        png_of(28, 28, *[chunk(b"teXt", b"")] * 90_000),
        "image/png",
        413,
        "may have 1048576 bytes",
    ),
    "a file far larger than its pixels": (png(X[0]) + bytes(2**20), "image/png", 413, "may have 1048576 bytes"),
    "many scans": (jpeg_of_many_scans(20_000), "image/jpeg", 422, "scans, expected at most 100; save it again"),
    "some more scans": (jpeg_of_many_scans(50), "image/jpeg", 200, ""),
}


@pytest.mark.parametrize("what", BOMBS)
def test_an_image_built_to_be_expensive_is_cheap_to_refuse(what: str, model: edgevae.Model) -> None:
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


def test_a_model_that_takes_too_long_times_out(model: edgevae.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()

    def wait(*_args: Any, **_options: Any) -> None:
        opened.wait(10)

    async def talk(client: Client) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(model, "reconstruct", wait)
            answer = await post(client, "/reconstruct", npy(X[:1]))
        opened.set()
        assert answer.status_code == 504
        assert answer.json() == {"detail": "no answer within 0.2 s"}
        assert (await post(client, "/reconstruct", npy(X[:1]))).status_code == 200

    serve(model, talk, timeout_s=0.2)


def test_a_body_that_does_not_end_times_out(model: edgevae.Model) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"\x93NUMPY"
        await asyncio.sleep(5)

    async def talk(client: Client) -> httpx.Response:
        return await client.post("/score", content=slow(), headers={"Content-Type": NPY})

    start = time.monotonic()
    assert serve(model, talk, timeout_s=0.1).status_code == 504
    assert time.monotonic() - start < 3


@contextlib.contextmanager
def program(*options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.URL]]:
    """The program as a user starts it, on a free port."""
    command = [sys.executable, "examples/service.py", "models/mnist-mlp", "--port", "0", *options]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            url = None
            while url is None:
                line = process.stderr.readline()
                assert line, "the service ended before it listened"
                url = re.search(r"http://127\.0\.0\.1:\d+", line)
            yield process, httpx.URL(url[0])
        finally:
            process.kill()


def connect(url: httpx.URL) -> socket.socket:
    client = socket.create_connection((url.host, url.port or 0), timeout=10)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return client


def send_until_closed(client: socket.socket, data: bytes, most_bytes: int) -> bytes:
    """Send the same bytes again and again until the server closes the connection; return what it answered."""
    with contextlib.suppress(ConnectionError):
        for _ in range(most_bytes // len(data)):
            client.sendall(data)
        raise AssertionError(f"the server read {most_bytes} bytes")
    return answer_of(client)


def answer_of(client: socket.socket) -> bytes:
    """What the server sends before it closes the connection; nothing if the kernel has dropped it with a reset."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := client.recv(4096):
            parts.append(part)
    return b"".join(parts)


def test_the_program_serves_within_its_limits_until_a_signal_comes(model: edgevae.Model) -> None:
    with program("--max-connections", "4") as (process, url):
        headers = {"Content-Type": NPY}
        with httpx.Client(base_url=url, headers=headers) as client:
            answer = client.post("/reconstruct", content=npy(X[:1]), params={"seed": 7})
            np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), model.reconstruct(X[:1], seed=7))
            assert client.post("/score", content=bytes(2**20 + 1)).status_code == 413
            assert client.get("/openapi.json").status_code == 200
        head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {NPY}\r\n".encode()
        with connect(url) as gone:  # a client that leaves in the middle of its body
            gone.sendall(head + b"Content-Length: 99\r\n\r\ncut off")
        with connect(url) as endless:
            endless.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            send_until_closed(endless, b"4000\r\n" + bytes(0x4000) + b"\r\n", 2**26)
        with connect(url) as endless:
            endless.sendall(b"GET / HTTP/1.1\r\nX: ")
            send_until_closed(endless, b"x" * 2**16, 2**26)
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(connect(url))
            time.sleep(0.2)
            assert httpx.get(url.join("/openapi.json")).status_code == 503
        assert httpx.get(url.join("/openapi.json")).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(10) in (0, -signal.SIGTERM)
        assert "Application shutdown complete" in rest
        assert "Traceback" not in rest
