"""One replica's work without its wires: requests to documents, many made in one running batch."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from oneflow_core.pipeline import GeneratedDocument, Prompt
from oneflow_core.running import Options
from workflows.serving.line import Closed, Full, Line
from workflows.serving.meters import Meters
from workflows.serving.model import Model
from workflows.serving.ticket import Ticket, Work
from workflows.serving.wire import (
    BadRequest,
    GenerateRequest,
    ImagePart,
    Limits,
    TextPart,
    decode_image,
    segments_json,
)

log = logging.getLogger("ray.serve")
T = TypeVar("T")

LONGEST_STEP_S = 600.0


@dataclass(frozen=True, slots=True)
class Room:
    """How much a replica takes on."""

    queue: int = 64
    """Documents that wait."""
    threads: int = 1
    """Threads of the network on a CPU, and of reading and writing images."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model with its line: what a request is given to, from beginning to end."""

    model: Model
    line: Line

    @property
    def identity(self) -> dict[str, str]:
        """Name, version and run of the model."""
        return dict(self.model.facts.identity)

    def end(self) -> None:
        """Serves what it has, and lets go of the model."""
        self.line.close()
        self.line.join()
        self.model.close()


class Order:
    """One request's documents in the making. Whoever holds it closes it: what is not done then is cancelled."""

    def __init__(self, served: Served, tickets: Sequence[Ticket]) -> None:
        self.served, self.tickets = served, list(tickets)
        self.started = time.perf_counter()

    def close(self) -> None:
        """Nobody waits any more."""
        left = [ticket for ticket in self.tickets if not ticket.made.done()]
        if left:
            self.served.line.cancel(left)


class Engine:
    """The model that is served now, and what all requests to it share."""

    def __init__(self, model: Model, room: Room | None = None, limits: Limits | None = None) -> None:
        self.room, self.limits, self.meters = room or Room(), limits or Limits(), Meters()
        self.pool = ThreadPoolExecutor(max(2, self.room.threads), thread_name_prefix="images")
        self.upgrade: dict[str, str] | None = None
        """What became of the last change of model, where there was one."""
        self.served = self._serve(model)

    def replace(self, model: Model) -> Served:
        """New requests go to `model`; returns the one before, which takes none any more and is to be ended."""
        before, self.served = self.served, self._serve(model)
        before.line.close()
        return before

    def close(self) -> None:
        """Serves what it has, and ends its threads."""
        self.served.end()
        self.pool.shutdown()

    def _serve(self, model: Model) -> Served:
        return Served(model, Line(model, self.meters, queue=self.room.queue))

    def check(self) -> None:
        """Raises `BadRequest` (429) where the queue is full: before a body is read."""
        try:
            self.served.line.check()
        except Full as full:
            raise _busy(full) from None

    async def order(self, works: Sequence[Work], *, watched: bool = False) -> Order:
        """Puts the documents of a request in line.

        Raises:
            BadRequest: the queue is full (429, with Retry-After).
        """
        while True:
            served = self.served
            try:
                return Order(served, served.line.submit(works, watched=watched))
            except Full as full:
                raise _busy(full) from None
            except Closed:
                await asyncio.sleep(0)

    async def prompt(self, parts: Sequence[TextPart | ImagePart], fields: Sequence[str]) -> tuple[Any, ...]:
        """The segments of a prompt; images are brought to the model's size at once, so that few bytes wait.

        Raises:
            BadRequest: an image that cannot be read; `fields` are the parts' names.
        """
        size = self.served.model.facts.image_size

        def decoded() -> tuple[Any, ...]:
            return tuple(
                part.text if isinstance(part, TextPart) else decode_image(part, field, self.limits, size)
                for part, field in zip(parts, fields, strict=True)
            )

        if all(isinstance(part, TextPart) for part in parts):
            return decoded()
        return await self.off_loop(decoded)

    async def off_loop(self, call: Callable[[], T]) -> T:
        """`call` in a thread beside the network's."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, call)

    async def work(self, request: GenerateRequest) -> Work:
        """The document that `request` asks for."""
        fields = [f"segments.{i}.data" for i in range(len(request.segments))]
        segments = await self.prompt(request.segments, fields)
        options = Options(
            steps=request.steps,
            guidance=request.guidance,
            temperature=request.temperature,
            max_images=request.max_images,
            max_tokens=request.max_tokens,
            previews=request.stream and request.previews > 0,
        )
        seed = secrets.randbits(53) if request.seed is None else request.seed
        return Work(Prompt(segments, request.target), seed, options)

    async def answer(self, order: Order, request: GenerateRequest, at: int = 0) -> dict[str, Any]:
        """Waits for the document of `order` at that place; the answer of `POST /v1/generate`."""
        ticket = order.tickets[at]
        document = await made(ticket)
        segments = await self.segments(document)
        return {
            "segments": segments,
            "trace": document.trace.to_json() if request.trace else None,
            "model": order.served.identity,
            "seed": ticket.work.seed,
            "seconds": time.perf_counter() - order.started,
        }

    async def segments(self, document: GeneratedDocument) -> list[dict[str, Any]]:
        """A document's segments as JSON, counted; images become PNG beside the event loop."""
        for segment in document.segments:
            self.meters.segments.labels("text" if isinstance(segment, str) else "image").inc()
        if all(isinstance(segment, str) for segment in document.segments):
            return segments_json(document.segments)
        return await self.off_loop(lambda: segments_json(document.segments))

    def healthy(self) -> bool:
        """Whether the batch moves."""
        return not self.served.line.stuck(LONGEST_STEP_S)


async def made(ticket: Ticket) -> GeneratedDocument:
    """The ticket's document.

    Raises:
        BadRequest: the sampler refuses the options (422).
    """
    try:
        return await asyncio.shield(ticket.made)
    except ValueError as error:
        cause, _, mend = str(error).partition("; ")
        raise BadRequest(422, "body", cause, mend or "change the options") from None


async def as_made(order: Order) -> AsyncIterator[tuple[int, GeneratedDocument]]:
    """The documents of an order with their places in it, each when it is done."""
    pending = {asyncio.ensure_future(made(t)): i for i, t in enumerate(order.tickets)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                yield pending.pop(future), future.result()
    finally:
        for future in pending:
            future.cancel()


def _busy(full: Full) -> BadRequest:
    seconds = full.retry_after_s
    return BadRequest(
        429, "", "the queue is full", f"try again in {seconds} s", {"Retry-After": str(seconds)}
    )
