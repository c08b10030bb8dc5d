"""The running batch of a replica: who waits for a place, who has one, and the thread that steps."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeGuard

from workflows.serving.meters import Meters
from workflows.serving.model import Joining, Model, ModelGone
from workflows.serving.ticket import Ticket, Work

if TYPE_CHECKING:
    from PIL.Image import Image

    from oneflow_core.pipeline import GeneratedDocument
    from oneflow_core.running import ImageView

log = logging.getLogger("ray.serve")

LONGEST_WAIT_S = 120


class Full(Exception):
    """The queue is full; `retry_after_s` is when a place is likely to be free."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class Broken(Exception):
    """The batch broke while it made the document; the log says how."""


class Closed(Exception):
    """The line takes nobody any more: another model stands in its place."""


class Line:
    """A bounded queue in front of a model's running batch, for as long as the model is served.

    Three threads: one has those that wait prepared (images are encoded then, all together), one hands those that are
    ready to the model, one hears of every step what it has brought. The model goes on meanwhile, so it is handed a few
    more than it has places for, and lets them in itself, at the step after one has left. Requests get places in the
    order in which they came, one document each in turn, so that a request for many documents does not hold up the next
    one. Those few that the model has been handed by then are in front of it. About `queue` documents wait.
    """

    def __init__(self, model: Model, meters: Meters, *, queue: int) -> None:
        self.queue, self.meters = queue, meters
        self._model, self._places = model, model.facts.places
        self._ahead = max(1, self._places // 4)
        self._state = threading.Condition()
        self._waiting: deque[deque[Ticket]] = deque()
        self._handed: dict[int, Ticket] = {}
        """Those that the model has and has no place for yet, by their keys."""
        self._members: dict[int, Ticket] = {}
        self._leaving: list[int] = []
        self._keys = itertools.count()
        self._closing = False
        self._document_s = 1.0
        self._beat = time.monotonic()
        self._workers = [
            threading.Thread(target=self._work, args=(turn,), name=turn.__name__.strip("_"), daemon=True)
            for turn in (self._prepare, self._hand, self._hear)
        ]
        for worker in self._workers:
            worker.start()

    def submit(self, works: Sequence[Work], *, watched: bool = False) -> list[Ticket]:
        """Puts one request's documents in line; to be called in the event loop that awaits the tickets.

        Raises:
            Full: as many wait as may.
            Closed: `close` was called.
        """
        loop = asyncio.get_running_loop()
        with self._state:
            if self._closing:
                raise Closed
            self._refuse_if_full()
            request = next(self._keys)
            tickets = [Ticket(next(self._keys), request, work, watched, loop) for work in works]
            if tickets:
                self._waiting.insert(self._turn(), deque(tickets))
            self.meters.queue.inc(len(tickets))
            self._tell_places()
            self._state.notify_all()
        return tickets

    def picture(self, view: ImageView) -> Image:
        """An image as it stands; any thread, beside the network's."""
        return self._model.picture(view)

    def check(self) -> None:
        """Raises `Full` where `submit` would: before a body is read."""
        with self._state:
            self._refuse_if_full()

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Nobody waits for these any more; their places are free from the next step on."""
        with self._state:
            for ticket in tickets:
                if ticket.key in self._handed or ticket.key in self._members:
                    self._leaving.append(ticket.key)
                    self._release(ticket, "cancelled")
                elif self._withdraw(ticket):
                    self.meters.documents.labels("cancelled").inc()
            self._tell_places()
            self._state.notify_all()

    def close(self) -> None:
        """Takes nobody any more; those who are in line or in the batch are served, then the model may be closed."""
        with self._state:
            self._closing = True
            self._state.notify_all()

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits until a closed line has served all; whether it has."""
        with self._state:
            return self._state.wait_for(self._over, timeout_s)

    def stuck(self, longest_step_s: float) -> bool:
        """A thread has died, or one step takes longer than any should."""
        with self._state:
            alive = self._closing or all(worker.is_alive() for worker in self._workers)
            busy = bool(self._members or self._handed)
            return not alive or (busy and time.monotonic() - self._beat > longest_step_s)

    def _turn(self) -> int:
        """Where a new request stands: behind those that wait, but for whose turn has come ahead of a free place."""
        early = {ticket.request for ticket in self._handed.values()}
        return next(
            (at for at, group in enumerate(self._waiting) if group[0].request in early), len(self._waiting)
        )

    def _refuse_if_full(self) -> None:
        waiting = len(self._handed) + sum(map(len, self._waiting))
        if waiting - (self._places - len(self._members)) >= self.queue:
            seconds = self._document_s * (waiting / self._places + 0.5)
            raise Full(min(max(math.ceil(seconds), 1), LONGEST_WAIT_S))

    def _withdraw(self, ticket: Ticket) -> bool:
        for group in self._waiting:
            if ticket in group:
                group.remove(ticket)
                if not group:
                    self._waiting.remove(group)
                self.meters.queue.dec()
                return True
        return False

    def _tell_places(self) -> None:
        """A request's k-th document goes behind the first k + 1 of those in front, and the first k of those behind."""
        sizes, free = [len(group) for group in self._waiting], self._places - len(self._members)
        places = [(ticket, at) for at, ticket in enumerate(self._handed.values()) if ticket.watched]
        for at, group in enumerate(self._waiting):
            for k, ticket in enumerate(group):
                if ticket.watched:
                    front = len(self._handed) + sum(min(size, k + 1) for size in sizes[:at])
                    places.append((ticket, front + k + sum(min(size, k) for size in sizes[at + 1 :])))
        for ticket, ahead in places:
            ticket.place(ahead - free if ahead >= free else None)

    def _work(self, turn: Callable[[], bool]) -> None:
        while turn():
            pass

    def _prepare(self) -> bool:
        """Prepares the next ones that wait; False when no more will come."""
        with self._state:
            self._state.wait_for(lambda: self._raw() or self._over())
            tickets = self._raw()[: self._places]
        if tickets and not self._prepared(tickets) and len(tickets) > 1:
            for ticket in tickets:
                self._prepared([ticket])
        return bool(tickets)

    def _prepared(self, tickets: Sequence[Ticket]) -> bool:
        """Whether they could be prepared; a single one that could not leaves the line with the reason."""
        works = [ticket.work for ticket in tickets]
        try:
            prepared = self._model.prepare(
                [w.prompt for w in works], [w.seed for w in works], [w.options for w in works]
            )
        except Exception as error:
            if len(tickets) == 1:
                self._refuse(tickets[0], error)
            return False
        with self._state:
            for ticket, ready in zip(tickets, prepared, strict=True):
                ticket.prepared, ticket.prompt_tokens = ready, ready.tokens
            self._state.notify_all()
        return True

    def _refuse(self, ticket: Ticket, error: Exception) -> None:
        with self._state:
            if self._withdraw(ticket):
                self.meters.documents.labels("failed").inc()
            self._state.notify_all()
        if not isinstance(error, ValueError):
            log.error("a prompt could not be prepared", exc_info=error)
        ticket.settle(error if isinstance(error, ValueError) else Broken())

    def _hand(self) -> bool:
        """Hands those that are ready to the model, as many as it may have, and says who is gone; False at the end."""
        with self._state:
            self._state.wait_for(lambda: self._leaving or self._next() or self._over())
            if self._over():
                return False
            leaving, self._leaving = self._leaving, []
            handing = list[Ticket]()
            while group := self._next():
                handing.append(self._take(group))
        try:
            for key in leaving:
                self._model.leave(key)
            for ticket in handing:
                if ticket.prepared is not None:
                    self._model.join(ticket.key, Joining(ticket.prepared, ticket.watched))
                    ticket.prepared = None
        except ModelGone:
            self._lose()
            return False
        return True

    def _next(self) -> deque[Ticket] | None:
        """The first request whose next document is ready, while the model may have one more."""
        group = next((group for group in self._waiting if group[0].prepared is not None), None)
        free = self._places - len(self._handed) - len(self._members)
        return group if free > -self._ahead else None

    def _take(self, group: deque[Ticket]) -> Ticket:
        """The next document of this request, which goes to the end."""
        ticket = group.popleft()
        self._waiting.remove(group)
        if group:
            self._waiting.append(group)
        if not self._members and not self._handed:
            self._beat = time.monotonic()
        self._handed[ticket.key] = ticket
        return ticket

    def _hear(self) -> bool:
        """What a step has brought, to those who wait for it; False at the end."""
        try:
            step = self._model.step()
        except ModelGone:
            if not self._closing:
                log.exception("no step will come any more")
            self._lose()
            return False
        if step.size:
            self.meters.batch.observe(step.size)
            self.meters.steps.inc()
            self.meters.step_seconds.observe(step.seconds)
        with self._state:
            self._beat = time.monotonic()
            self._enter(step.joined)
            members = self._members
            seen = [(members[key], snapshot) for key, snapshot in step.seen.items() if key in members]
            done = [(members[key], made) for key, made in step.done.items() if key in members]
            # Places are free, and counted so, before anybody hears that a document is done.
            for ticket, made in done:
                self._release(ticket, "failed" if isinstance(made, Exception) else "left")
                self._document_s += 0.2 * (time.perf_counter() - ticket.since - self._document_s)
            if step.joined or done:
                self._tell_places()
        for ticket, snapshot in seen:
            ticket.show(snapshot)
        failures = {id(made): made for _, made in done if _is_failure(made)}
        for failure in failures.values():
            log.error("a step failed", exc_info=failure)
        for ticket, made in done:
            if not isinstance(made, Exception):
                self.meters.tokens.inc(len(made.trace.insertions))
            ticket.settle(Broken() if id(made) in failures else made)
        return True

    def _enter(self, keys: Sequence[int]) -> None:
        """Those of them that are still wanted have their places now."""
        for ticket in [self._handed.pop(key) for key in keys if key in self._handed]:
            self._members[ticket.key] = ticket
            self.meters.queue.dec()
            self.meters.running.inc()
            self.meters.documents.labels("joined").inc()
            self.meters.wait.observe(time.perf_counter() - ticket.since)
            ticket.since = time.perf_counter()
            ticket.place(None)

    def _release(self, ticket: Ticket, why: str) -> None:
        if self._handed.pop(ticket.key, None):
            self.meters.queue.dec()
        elif self._members.pop(ticket.key, None):
            self.meters.running.dec()
        self.meters.documents.labels(why).inc()
        self._state.notify_all()

    def _lose(self) -> None:
        """The model is gone: what it had is lost, and what waits for it waits in vain."""
        with self._state:
            lost = [*self._members.values(), *self._handed.values()]
            for ticket in lost:
                self._release(ticket, "failed")
            for ticket in [ticket for group in self._waiting for ticket in group]:
                lost.append(ticket)
                self._withdraw(ticket)
                self.meters.documents.labels("failed").inc()
            self._state.notify_all()
        for ticket in lost:
            ticket.settle(Broken())

    def _raw(self) -> list[Ticket]:
        return [t for group in self._waiting for t in group if t.prepared is None]

    def _over(self) -> bool:
        return self._closing and not (self._waiting or self._handed or self._members)


def _is_failure(made: GeneratedDocument | Exception) -> TypeGuard[Exception]:
    """Whether its batch broke; an image that cannot be decoded is its own request's affair."""
    from oneflow_core.encoders import EncoderError

    return isinstance(made, Exception) and not isinstance(made, EncoderError)
