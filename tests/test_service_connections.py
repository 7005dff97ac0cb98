"""The HTTP service of the examples, on real connections: what clients cannot hold open, and what they can."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .serving import REPOSITORY

from connections import MAX_HEAD_BYTES, impatient  # isort: skip - from the folder that serving puts on the path
import service  # isort: skip

Message = MutableMapping[str, Any]
PATIENCE_S = 0.5
LONG_S = 30.0
BIG_BYTES = 2**25  # more than the buffers of a connection hold


async def app(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[..., Awaitable[None]]) -> None:
    """Answer at once without reading the body; `/big` much, `/slow` never."""
    if scope["path"] == "/slow":
        await asyncio.sleep(LONG_S)
    body = bytes(BIG_BYTES if scope["path"] == "/big" else 2)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Serving:
    """A server in a thread.

    Args:
        patience_s: How long it waits.
        max_request_bytes: What it reads of a request.
    """

    def __init__(self, patience_s: float, max_request_bytes: int = 2**20) -> None:
        http = impatient(patience_s, max_request_bytes)
        config = uvicorn.Config(
            app, port=0, http=http, ws="none", lifespan="off", log_level="critical", timeout_keep_alive=1
        )
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Serving:
        self._thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_error: object) -> None:
        self.server.force_exit = self.server.should_exit = True
        self._thread.join()

    @contextlib.contextmanager
    def connection(self) -> Iterator[socket.socket]:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(10)
            client.connect(self.server.servers[0].sockets[0].getsockname())
            yield client

    def connections(self) -> int:
        return len(self.server.server_state.connections)


def is_cut_off(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def send_until_cut_off(client: socket.socket, data: bytes, pause_s: float = 0.0) -> int:
    """Send something again and again, for ten seconds at most; return how often until the connection was cut off."""
    end = time.monotonic() + 10
    count = 0
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < end:
            client.sendall(data)
            count += 1
            time.sleep(pause_s)
        raise AssertionError("the connection was not cut off")
    return count


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\n", b"GET /slow HTTP/1.1\r\n\r\n"])
def test_a_client_that_does_not_go_on_is_cut_off(sent: bytes) -> None:
    with Serving(PATIENCE_S) as serving, serving.connection() as client:
        start = time.monotonic()
        client.sendall(sent)
        assert is_cut_off(client)
        assert PATIENCE_S * 0.9 < time.monotonic() - start < 8


def test_a_head_that_comes_byte_by_byte_is_cut_off() -> None:
    with Serving(PATIENCE_S) as serving, serving.connection() as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert send_until_cut_off(client, b"x", 0.05) < 100


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nX: ", b"GET /"])
def test_a_head_without_end_is_cut_off_before_it_fills_the_memory(start: bytes) -> None:
    with Serving(LONG_S) as serving, serving.connection() as client:
        client.sendall(start)
        sent = send_until_cut_off(client, bytes([120]) * 2**16)
        assert sent * 2**16 < MAX_HEAD_BYTES + 2**24  # what the buffers of the connection hold comes on top


@pytest.mark.parametrize("coding", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"])
def test_a_body_without_end_that_nobody_reads_is_cut_off(coding: bytes) -> None:
    with Serving(LONG_S, max_request_bytes=2**18) as serving, serving.connection() as client:
        client.sendall(b"POST / HTTP/1.1\r\n" + coding + b"\r\n\r\n")
        sent = send_until_cut_off(client, b"4000\r\n" + bytes(0x4000) + b"\r\n")
        assert sent * 0x4000 < 2**18 + 2**24


def test_an_answer_that_is_not_taken_is_dropped() -> None:
    with Serving(PATIENCE_S) as serving, serving.connection() as client:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        end = time.monotonic() + 8
        while serving.connections() == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert serving.connections() == 1
        while serving.connections() and time.monotonic() < end:
            time.sleep(0.01)
        assert serving.connections() == 0


def test_a_client_that_keeps_its_connection_busy_is_left_alone() -> None:
    with Serving(PATIENCE_S) as serving, serving.connection() as client:
        for _ in range(8):  # longer than the patience for one
            client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 4000\r\n\r\n" + bytes(4000))
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(PATIENCE_S / 4)


def test_the_program_sets_the_limits_of_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    asked: list[tuple[float, int]] = []

    def make(patience_s: float, max_request_bytes: int) -> type[HttpToolsProtocol]:
        asked.append((patience_s, max_request_bytes))
        return HttpToolsProtocol

    monkeypatch.setattr(service, "impatient", make)
    monkeypatch.setattr(uvicorn, "run", lambda _app, **options: given.update(options))
    arguments = [str(REPOSITORY / "models" / "digits-mlp"), "--timeout", "3", "--max-body-bytes", "1000"]
    result = CliRunner().invoke(service.main, [*arguments, "--max-requests", "8"])
    assert result.exit_code == 0, result.output
    assert asked == [(13.0, 2000 + 2**16)]
    assert (given["http"], given["ws"], given["limit_concurrency"]) == (HttpToolsProtocol, "none", 32)
    assert given["timeout_keep_alive"] < asked[0][0]
