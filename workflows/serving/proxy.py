"""What stands before the replicas, in Serve's HTTP proxy: it outlives them, and bounds what is held for them.

Serve answers a request whose replica has died with 500, and cuts a stream without a word. Its proxies take this in
where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names `workflows.serving.proxy:middlewares`; `oneflow serve` and the
manifests of `oneflow submit` set that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS

from workflows.serving.problems import FAILED, LOST, shape_of
from workflows.serving.wire import BadRequest, Limits

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("ray.serve")

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
PATH = f"{__name__}:middlewares"
PROTOCOL = "workflows.serving.protocol:BoundedProtocol"
ORDERS = frozenset(
    {
        b"serve-multiplexed-model-id",
        b"x-request-disconnect-disabled",
        b"x-request-timeout-seconds",
    }
)
LONG = BadRequest(413, "body", f"more than {Limits().body_bytes} bytes", "send smaller images")


def middlewares() -> list[Middleware]:
    """For Serve, which calls this when a proxy starts, and then uvicorn, which is to read heads within limits."""
    HTTP_PROTOCOLS["auto"] = PROTOCOL
    return [Middleware(Survivor)]


class Survivor:
    """Ends every request with an answer, whatever became of the replica."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reply, bodies = _Reply(scope["path"], send), _Bounded(receive)
        try:
            await self.app({**scope, "headers": _plain(scope["headers"])}, bodies, reply.send)
        except Exception:
            log.exception("a request failed in the proxy")
        await reply.complete(LONG if bodies.cut else LOST)


def _plain(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers without those that Serve takes as orders of its own, and those that it cannot read."""
    return [(name, value) for name, value in headers if _is_plain(name) and value.isascii()]


def _is_plain(name: bytes) -> bool:
    return name.isascii() and name.lower().replace(b"_", b"-") not in ORDERS


class _Reply:
    """What went out of one answer. Serve's own refusals, which are plain text, are put into the route's words."""

    def __init__(self, path: str, send: Send) -> None:
        self.shape, self._send = shape_of(path), send
        self.started = self.ended = self.replaced = self.events = False

    async def send(self, message: Message) -> None:
        """Passes on what Serve has to say, or what the route's clients understand instead."""
        if message["type"] == "http.response.start":
            self.started = True
            kind = _header(message, b"content-type")
            self.events = kind.startswith(b"text/event-stream")
            if message["status"] in (408, 429, 500, 503) and not kind.startswith(b"application/json"):
                self.replaced = True
                await self._tell(_serves_own(message))
                return
        if self.replaced:
            return
        self.ended |= message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def complete(self, why: BadRequest) -> None:
        """Says `why` where nothing has been said, or a stream was cut."""
        if not self.started:
            await self._tell(why)
        elif self.events and not self.ended:
            await self._send(
                {"type": "http.response.body", "body": self.shape.event(why), "more_body": False}
            )

    async def _tell(self, refusal: BadRequest) -> None:
        body = json.dumps(self.shape(refusal)).encode()
        headers = {**refusal.headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self.ended = True


def _header(message: MutableMapping[str, Any], name: bytes) -> bytes:
    return next((bytes(v) for k, v in message.get("headers", ()) if bytes(k).lower() == name), b"")


def _serves_own(message: Message) -> BadRequest:
    if message["status"] == 500:
        return FAILED
    wait = _header(message, b"retry-after").decode() or "1"
    return BadRequest(
        message["status"], "", "no replica takes the request", f"try again in {wait} s", {"Retry-After": wait}
    )


class _Bounded:
    """`receive` whose bodies are no longer than a replica reads; the rest is dropped, and then the client."""

    def __init__(self, receive: Receive) -> None:
        self.receive, self.limit = receive, Limits().body_bytes + 1
        self.size, self.cut = 0, False

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] != "http.request":
            return message
        body = message.get("body", b"")
        kept = body[: max(self.limit - self.size, 0)]
        self.size += len(body)
        self.cut = self.size > 4 * self.limit
        return {"type": "http.disconnect"} if self.cut else {**message, "body": kept}
