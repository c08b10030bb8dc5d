"""HTTP/1.1 as the proxy reads it: what stands around bodies has limits of size and time, which uvicorn's parser lacks.

Without them one header that does not end fills the proxy's memory, and holds up all others while it is copied again
and again.
"""

from __future__ import annotations

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from workflows.serving.problems import native
from workflows.serving.wire import BadRequest, Limits

HEAD_BYTES = 64 << 10
"""Most bytes of a request's line and headers."""
HEAD_S = 20.0
"""Seconds within which they must be there: from the connection on, or from a later request's first byte."""
FRAME_BYTES = Limits().body_bytes
"""Most bytes of a body that are no content: sizes of chunks, and what follows them."""
LINGER_S = 5.0
"""For so long what a client still sends is taken, and dropped, after it got its answer: it would not read it before."""
LARGE = BadRequest(431, "", f"more than {HEAD_BYTES} bytes of headers", "send fewer headers")
LATE = BadRequest(408, "", "the headers did not arrive in time", "send them faster")
LINES = {
    431: b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
    408: b"HTTP/1.1 408 Request Timeout\r\n",
}


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head may begin."""
        super().connection_made(transport)
        self._in_head, self._taken, self._whole = True, 0, 0
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(HEAD_S, self._refuse, LATE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits any more."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes more; those of bodies are counted elsewhere."""
        self._taken += len(data)
        super().data_received(data)
        if self._taken > (HEAD_BYTES if self._in_head else FRAME_BYTES):
            self._refuse(LARGE)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        if not self._in_head:
            self._in_head, self._taken = True, 0
            self._timer = self.loop.call_later(HEAD_S, self._refuse, LATE)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; what stands behind a body is passed over."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The body may begin."""
        self._stop()
        self._in_head, self._taken = False, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of a body."""
        self._taken -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """One request more is there as a whole."""
        self._whole += 1
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The client has its answer, perhaps before it has sent everything."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self.loop.call_later(LINGER_S, self._give_up, self._whole)

    def _give_up(self, whole: int) -> None:
        """Ends the connection whose request is still not whole; others may use theirs again."""
        if self._whole == whole and not self._in_head:
            self.transport.close()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, why: BadRequest) -> None:
        """Ends the connection, with words where they cannot get into another answer."""
        if self.transport.is_closing():
            return
        idle = self.cycle is None or self.cycle.response_complete
        if why is LATE and not idle:
            self._timer = self.loop.call_later(HEAD_S, self._refuse, LATE)
            return
        if idle:
            body = json.dumps(native(why)).encode()
            length = f"content-length: {len(body)}\r\n".encode()
            kind = b"content-type: application/json\r\nconnection: close\r\n"
            self.transport.write(LINES[why.status] + kind + length + b"\r\n" + body)
        self.transport.close()
