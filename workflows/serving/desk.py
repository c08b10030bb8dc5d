"""Where requests are received: who may ask, bodies within limits of size and time, and every failure as an answer."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from workflows.serving import batch, chat, pictures
from workflows.serving.access import demand
from workflows.serving.events import EventStream, growth
from workflows.serving.problems import FAILED, Shape, native, openai
from workflows.serving.wire import BadRequest, parse

if TYPE_CHECKING:
    from workflows.serving.engine import Engine, Order

log = logging.getLogger("ray.serve")

GONE = 499
"""Status in the meters of a request whose client went away; nobody receives it."""
Plan = tuple["Order", Callable[[], Awaitable[Response]]]
"""A request's documents in line, and how the answer comes of them."""


def as_json(status: int, value: Any, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return Response(body, status, media_type="application/json", headers=headers)


class Desk:
    """The routes of one replica that make documents."""

    def __init__(self, engine: Engine, key_digest: str = "") -> None:
        self.engine, self.key_digest = engine, key_digest
        self.held_bytes = 0
        """Of all bodies that are here and not yet read into requests."""

    async def generate(self, request: Request) -> Response:
        """`POST /v1/generate`."""
        return await self._answer(request, self._generate, native)

    async def batch(self, request: Request) -> Response:
        """`POST /v1/batch`."""
        return await self._answer(request, lambda body: batch.plan(self.engine, body), native)

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        return await self._answer(request, lambda body: chat.plan(self.engine, body), openai)

    async def pictures(self, request: Request) -> Response:
        """`POST /v1/images/generations`."""
        return await self._answer(request, lambda body: pictures.plan(self.engine, body), openai)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return self.guard(request, lambda: as_json(200, chat.models(self.engine)), openai)

    def guard(self, request: Request, make: Callable[[], Response], shape: Shape = native) -> Response:
        """What `make` says, to whoever has the key."""
        try:
            demand(request.headers.get("authorization", ""), self.key_digest)
        except BadRequest as refusal:
            return self._refused(refusal, shape)
        return make()

    async def _generate(self, body: bytes) -> Plan:
        request = parse(body, self.engine.limits)
        order = await self.engine.order([await self.engine.work(request)], watched=request.stream)

        async def whole() -> Response:
            return as_json(200, await self.engine.answer(order, request))

        async def stream() -> Response:
            name = f"gen-{secrets.token_hex(12)}"
            return EventStream(growth(self.engine, order, request, name), order)

        return order, stream if request.stream else whole

    async def _answer(
        self, request: Request, plan: Callable[[bytes], Awaitable[Plan]], shape: Shape
    ) -> Response:
        """Answers one request; what it does wrong is a 4xx, what we do wrong a 500, never an exception."""
        started = time.perf_counter()
        self.engine.meters.waiting.inc()
        try:
            response = await self._made(request, plan)
        except BadRequest as refusal:
            response = self._refused(refusal, shape)
        except (asyncio.CancelledError, ClientDisconnect):
            self._count(GONE, started)
            raise
        except Exception:
            log.exception("a request failed")
            response = as_json(500, shape(FAILED))
        if isinstance(response, EventStream):
            response.events = self._guarded(response.events, shape, started)
        else:
            self._count(response.status_code, started)
        return response

    async def _made(self, request: Request, plan: Callable[[bytes], Awaitable[Plan]]) -> Response:
        demand(request.headers.get("authorization", ""), self.key_digest)
        self.engine.check()
        async with self._body(request) as body:
            order, answer = await plan(body)
        del body
        try:
            response = await answer()
        except BaseException:
            order.close()
            raise
        return response

    async def _guarded(
        self, events: AsyncGenerator[bytes], shape: Shape, started: float
    ) -> AsyncGenerator[bytes]:
        """The events of a stream, the last of them an error where one comes up; counted at the end."""
        status = GONE
        try:
            async for event in events:
                yield event
            status = 200
        except BadRequest as refusal:
            status = refusal.status
            yield shape.event(refusal)
        except Exception:
            log.exception("a stream failed")
            status = 500
            yield shape.event(FAILED)
        finally:
            self._count(status, started)

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body for as long as it is read into a request; at most one byte over the limit is kept."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.engine.limits.body_s):
                await self._receive(request, body)
        except TimeoutError:
            self.held_bytes -= len(body)
            cause = f"it did not arrive within {self.engine.limits.body_s:g} s"
            raise BadRequest(408, "body", cause, "send it faster, or smaller images") from None
        except BaseException:
            self.held_bytes -= len(body)
            raise
        try:
            yield bytes(body)
        finally:
            self.held_bytes -= len(body)

    async def _receive(self, request: Request, body: bytearray) -> None:
        """What is too much is taken off the wire for a while: who sends hears nothing before."""
        limits, size = self.engine.limits, 0
        async for chunk in request.stream():
            part = chunk[: limits.body_bytes + 1 - len(body)]
            body += part
            size, self.held_bytes = size + len(chunk), self.held_bytes + len(part)
            if self.held_bytes > limits.held_bytes:
                raise BadRequest(429, "", "too many bodies at once", "try again in 5 s", {"Retry-After": "5"})
            if size > 4 * limits.body_bytes:
                return

    def _refused(self, refusal: BadRequest, shape: Shape) -> Response:
        return as_json(shape.status(refusal.status), shape(refusal), refusal.headers)

    def _count(self, status: int, started: float) -> None:
        meters = self.engine.meters
        meters.waiting.dec()
        meters.requests.labels(str(status)).inc()
        meters.seconds.observe(time.perf_counter() - started)
