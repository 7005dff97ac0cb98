"""Connections that cost little: a server that gives up clients which send or read too slowly, or send without end.

    uvicorn.run(app, http=impatient(patience_s=20.0, max_request_bytes=2**24), ws="none")

uvicorn by itself waits for as long as a client likes: for the head of a request, for the rest of a body that nobody
reads any more, and for an answer to be taken; and a head may be as long as the memory. An application does not see any
of these.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 2**16


class _Impatient(HttpToolsProtocol):
    """uvicorn's protocol, which gives up a connection that goes beyond a limit; `impatient` sets them."""

    patience_s = 20.0
    max_request_bytes = 2**24
    _deadline: asyncio.TimerHandle | None = None
    _in_head = False
    _requests = _received_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._requests += 1
        self._in_head = True

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head = False

    def data_received(self, data: bytes) -> None:
        before = self._requests
        super().data_received(data)
        self._received_bytes = self._received_bytes + len(data) if self._requests == before else 0
        if self._received_bytes > (MAX_HEAD_BYTES if self._in_head else self.max_request_bytes):
            self.transport.abort()

    def on_response_complete(self) -> None:
        self._wait()
        super().on_response_complete()

    def _wait(self) -> None:
        """Begin to wait anew. In the end the connection is cut off: to close it would be to wait for the client."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self.patience_s, self.transport.abort)


def impatient(patience_s: float, max_request_bytes: int) -> type[HttpToolsProtocol]:
    """Return the protocol that `uvicorn.run` takes as `http`.

    Args:
        patience_s: From the connection, or the end of the answer before, until an answer is complete; and from there
            until the client has taken it. Longer than `timeout_keep_alive` and all that the application may take.
        max_request_bytes: Size of a request in all, as it comes over the line. Its head may have 64 KiB.
    """

    class Limited(_Impatient):
        pass

    Limited.patience_s, Limited.max_request_bytes = patience_s, max_request_bytes
    return Limited
