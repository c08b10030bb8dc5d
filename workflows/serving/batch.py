"""Many documents in one request, each answered when it is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from workflows.serving.events import EventStream, event
from workflows.serving.problems import FAILED
from workflows.serving.ticket import Work
from workflows.serving.wire import BadRequest, BatchRequest, GenerateRequest, ImagePart, check_parts, read

if TYPE_CHECKING:
    from workflows.serving.engine import Engine, Order

log = logging.getLogger("ray.serve")


async def plan(engine: Engine, body: bytes) -> tuple[Order, Callable[[], Awaitable[Response]]]:
    """The documents in line, and their answers as events; what is wrong with one is an event of its own.

    Raises:
        BadRequest: what is wrong with the whole of it, or the queue is full.
    """
    requests = read(BatchRequest, body, engine.limits, "POST /v1/batch").requests
    images = sum(isinstance(part, ImagePart) for request in requests for part in request.segments)
    if images > engine.limits.batch_images:
        mend = f"send at most {engine.limits.batch_images} in one batch"
        raise BadRequest(413, "requests", f"{images} images", mend)
    works = await asyncio.gather(*(_work(engine, request) for request in requests))
    refused = {i: work for i, work in enumerate(works) if isinstance(work, BadRequest)}
    order = await engine.order([work for work in works if isinstance(work, Work)])
    places = [i for i in range(len(requests)) if i not in refused]

    async def stream() -> Response:
        # As silent as a single answer is, so that who waits for one knows when it takes too long.
        return EventStream(_events(engine, order, requests, places, refused), order, beats=False)

    return order, stream


async def _work(engine: Engine, request: GenerateRequest) -> Work | BadRequest:
    try:
        check_parts(request.segments, engine.limits, "segments")
        return await engine.work(request)
    except BadRequest as refusal:
        return refusal


async def _events(
    engine: Engine,
    order: Order,
    requests: Sequence[GenerateRequest],
    places: Sequence[int],
    refused: Mapping[int, BadRequest],
) -> AsyncGenerator[bytes]:
    """`answer` and `refused`, those of a step together, then `done`."""
    if refused:
        yield b"".join(_refusal(index, refusal) for index, refusal in refused.items())
    pending = {ticket.made: at for at, ticket in enumerate(order.tickets)}
    while pending:
        done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        told = [(places[at], at) for at in sorted(pending.pop(future) for future in done)]
        yield b"".join([await _event(engine, order, requests[index], index, at) for index, at in told])
    yield event("done", {"requests": len(requests)})


async def _event(engine: Engine, order: Order, request: GenerateRequest, index: int, at: int) -> bytes:
    try:
        return event("answer", {"index": index, **await engine.answer(order, request, at)})
    except BadRequest as refusal:
        return _refusal(index, refusal)
    except Exception:
        log.exception("a document of a batch failed")
        return _refusal(index, FAILED)


def _refusal(index: int, refusal: BadRequest) -> bytes:
    told: dict[str, Any] = {"index": index, "status": refusal.status, **refusal.body}
    return event("refused", told)
