"""A document's growth as server-sent events."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from oneflow_core.running import changes
from workflows.serving.model import ModelGone
from workflows.serving.wire import GenerateRequest, encode_png

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from oneflow_core.running import Changes, Snapshot
    from workflows.serving.engine import Engine, Order

HEARTBEAT_S = 10.0
"""A comment goes out after so long a silence, for whoever cuts idle connections."""
BEAT = b": still here\n\n"


def event(name: str, value: dict[str, Any]) -> bytes:
    """One event; JSON has no line breaks of its own."""
    return f"event: {name}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


class EventStream(StreamingResponse):
    """`text/event-stream` that closes its order when it ends, however it ends; `beats` keep it from being silent."""

    def __init__(self, events: AsyncGenerator[bytes], order: Order, *, beats: bool = True) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.events, self.order, self.beats = events, order, beats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until the events end or the client has gone, which is told, or cancels this (as Serve does)."""
        self.body_iterator = alive(self.events) if self.beats else self.events
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.order.close()
            if self.beats:
                await self.body_iterator.aclose()
            await self.events.aclose()


async def alive(events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The events, and a comment after every `HEARTBEAT_S` without one."""
    while True:
        coming = asyncio.ensure_future(anext(events))
        try:
            while not (await asyncio.wait({coming}, timeout=HEARTBEAT_S))[0]:
                yield BEAT
            event = coming.result()
        except StopAsyncIteration:
            return
        finally:
            coming.cancel()
            await asyncio.wait({coming})
        yield event


async def growth(engine: Engine, order: Order, request: GenerateRequest, name: str) -> AsyncGenerator[bytes]:
    """The events of one document: start, queued, insertions, previews, done."""
    (ticket,) = order.tickets
    start = {"id": name, "seed": ticket.work.seed, "target": request.target, "model": order.served.identity}
    yield event("start", start)
    before: Snapshot | None = None
    ahead: int | None = None
    while True:
        finished = ticket.made.done()
        ticket.news.clear()
        if ticket.ahead is not None and ticket.ahead != ahead and not finished:
            ahead = ticket.ahead
            yield event("queued", {"ahead": ahead})
        for after in ticket.seen():
            change = changes(before, after)
            if change.arrivals or change.departures:
                yield event("insertions", _change(change))
            if request.previews and _due(before, after, request.previews):
                for preview in await _previews(engine, order, after):
                    yield event("preview", preview)
            before = after
        if finished:
            break
        await ticket.news.wait()
    yield event("done", await engine.answer(order, request))


def _change(change: Changes) -> dict[str, Any]:
    return {
        "step": change.step,
        "time": change.time,
        "insertions": [
            {"id": a.element.id, "position": a.position, "token": a.element.text, "image": a.element.image}
            for a in change.arrivals
        ],
        "deletions": [{"id": d.id, "position": d.position} for d in change.departures],
    }


def _due(before: Snapshot | None, after: Snapshot, every: int) -> bool:
    """Whether a multiple of `every` steps lies between the two."""
    return after.step // every > (before.step // every if before else 0)


async def _previews(engine: Engine, order: Order, snapshot: Snapshot) -> list[dict[str, Any]]:
    line = order.served.line

    def drawn() -> list[dict[str, Any]]:
        made = []
        for name, view in snapshot.images.items():
            try:
                picture = line.picture(view)
            except ModelGone:
                # An upgrade has let go of it: the document is done, only its reader is behind.
                break
            data = base64.b64encode(encode_png(picture)).decode("ascii")
            size = {"width": picture.width, "height": picture.height}
            made.append({"id": name, "step": snapshot.step, "time": view.time, "data": data, **size})
        return made

    return await engine.off_loop(drawn) if snapshot.images else []
