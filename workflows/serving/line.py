"""The running batch of a replica: who waits for a place, who has one, and the thread that steps."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflows.serving.meters import Meters
from workflows.serving.model import Joining, Model, Turn
from workflows.serving.ticket import Ticket, Work

if TYPE_CHECKING:
    from PIL.Image import Image

    from oneflow_core.encoders import EncoderError
    from oneflow_core.pipeline import GeneratedDocument
    from oneflow_core.running import ImageView, Snapshot

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


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a step."""

    done: Mapping[Ticket, GeneratedDocument | EncoderError]
    seen: Mapping[Ticket, Snapshot]


class Line:
    """A bounded queue in front of one running batch, for as long as a model is served.

    A thread has those that wait prepared (images are encoded then, all together), another has the batch stepped: at
    every step those that are ready join while there is a place, and those that are done or cancelled leave; what came
    of a step is told while the next one is computed. Requests get places
    in the order in which they came, one document each in turn, so that a request for many documents does not hold up
    the next one. `batch` documents at most are made at once, and about `queue` wait.
    """

    def __init__(self, model: Model, meters: Meters, *, batch: int, queue: int) -> None:
        self.batch, self.queue, self.meters = batch, queue, meters
        self._model = model
        self._state = threading.Condition()
        self._waiting: deque[deque[Ticket]] = deque()
        self._members: dict[Ticket, None] = {}
        self._gone: list[Ticket] = []
        self._untold = _Outcome({}, {})
        self._closing = False
        self._document_s = 1.0
        self._beat = time.monotonic()
        self._workers = [
            threading.Thread(target=self._work, args=(turn,), name=turn.__name__.strip("_"), daemon=True)
            for turn in (self._prepare, self._step)
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
            tickets = [Ticket(work, watched, loop) for work in works]
            self._waiting.append(deque(tickets))
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
                if ticket in self._members:
                    self._gone.append(ticket)
                elif self._withdraw(ticket):
                    self.meters.documents.labels("cancelled").inc()
            self._tell_places()
            self._state.notify_all()

    def close(self) -> None:
        """Takes nobody any more; those who are in line or in the batch are served, then the threads end."""
        with self._state:
            self._closing = True
            self._state.notify_all()

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits for the threads of a closed line to end; whether they did."""
        for worker in self._workers:
            worker.join(timeout_s)
        return not any(worker.is_alive() for worker in self._workers)

    def stuck(self, longest_step_s: float) -> bool:
        """A thread has died, or one step takes longer than any should."""
        with self._state:
            alive = self._closing or all(worker.is_alive() for worker in self._workers)
            return not alive or (bool(self._members) and time.monotonic() - self._beat > longest_step_s)

    def _refuse_if_full(self) -> None:
        waiting = sum(map(len, self._waiting))
        if waiting - (self.batch - len(self._members)) >= self.queue:
            seconds = self._document_s * (waiting / self.batch + 0.5)
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
        sizes, free = [len(group) for group in self._waiting], self.batch - len(self._members)
        for at, group in enumerate(self._waiting):
            for k, ticket in enumerate(group):
                if ticket.watched:
                    front = sum(min(size, k + 1) for size in sizes[:at])
                    ahead = front + k + sum(min(size, k) for size in sizes[at + 1 :]) - free
                    ticket.place(ahead if ahead >= 0 else None)

    def _work(self, turn: Callable[[], bool]) -> None:
        while turn():
            pass

    def _prepare(self) -> bool:
        """Prepares the next ones that wait; False when no more will come."""
        with self._state:
            self._state.wait_for(lambda: self._raw() or self._over())
            tickets = self._raw()[: self.batch]
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

    def _step(self) -> bool:
        """Lets go who is gone, lets in who is ready, and steps; False when no more will come."""
        with self._state:
            self._state.wait_for(
                lambda: self._members or self._gone or self._next(take=False) or self._over()
            )
            gone, self._gone = [t for t in self._gone if t in self._members], []
            for ticket in gone:
                self._release(ticket, "cancelled")
            joining = self._admit()
            self._beat = time.monotonic()
            if not (self._members or gone):
                return not self._over()
        try:
            self._turn([t.key for t in gone if t.key is not None], joining)
        except Exception as error:
            log.error("a step failed", exc_info=error)
            self._fail()
        if not self._members:
            self._tell()
        return True

    def _admit(self) -> list[Ticket]:
        joining = []
        while len(self._members) < self.batch and (ticket := self._next(take=True)):
            self._members[ticket] = None
            joining.append(ticket)
            self.meters.queue.dec()
            self.meters.running.inc()
            self.meters.documents.labels("joined").inc()
            self.meters.wait.observe(time.perf_counter() - ticket.since)
            ticket.since = time.perf_counter()
            ticket.place(None)
        if joining:
            self._tell_places()
            self._state.notify_all()
        return joining

    def _next(self, *, take: bool) -> Ticket | None:
        """The first ready document of the first request that has one; taken, its request goes to the end."""
        for group in self._waiting:
            if group[0].prepared is not None:
                ticket = group[0]
                if take:
                    group.popleft()
                    self._waiting.remove(group)
                    if group:
                        self._waiting.append(group)
                return ticket
        return None

    def _turn(self, leaving: Sequence[int], joining: Sequence[Ticket]) -> None:
        """One step; what came of the one before is told beside it."""
        started = time.perf_counter()
        entering = [Joining(t.prepared, t.watched) for t in joining if t.prepared is not None]
        turn = self._model.turn(leaving, entering, self._tell)
        for ticket, key in zip(joining, turn.keys, strict=True):
            ticket.key, ticket.prepared = key, None
        if turn.size:
            self.meters.batch.observe(turn.size)
            self.meters.steps.inc()
            self.meters.step_seconds.observe(time.perf_counter() - started)
        self._book(turn)

    def _book(self, turn: Turn) -> None:
        """Places are free, and counted so, before anybody hears that a document is done."""
        with self._state:
            by_key = {ticket.key: ticket for ticket in self._members}
            done = {by_key[key]: made for key, made in turn.done.items()}
            for ticket, made in done.items():
                self._release(ticket, "failed" if isinstance(made, Exception) else "left")
                seconds = time.perf_counter() - ticket.since
                self._document_s += 0.2 * (seconds - self._document_s)
        self._untold = _Outcome(done, {by_key[key]: snapshot for key, snapshot in turn.seen.items()})

    def _tell(self) -> None:
        """What came of the last step, to those who wait for it."""
        outcome, self._untold = self._untold, _Outcome({}, {})
        for ticket, snapshot in outcome.seen.items():
            ticket.show(snapshot)
        for ticket, made in outcome.done.items():
            if not isinstance(made, Exception):
                self.meters.tokens.inc(len(made.trace.insertions))
            ticket.settle(made)

    def _release(self, ticket: Ticket, why: str) -> None:
        if ticket in self._members:
            del self._members[ticket]
            self._state.notify_all()
            self.meters.running.dec()
            self.meters.documents.labels(why).inc()

    def _fail(self) -> None:
        """All that took part fail; the batch is empty."""
        with self._state:
            members = list(self._members)
            for ticket in members:
                self._release(ticket, "failed")
        for ticket in members:
            ticket.settle(Broken())

    def _raw(self) -> list[Ticket]:
        return [t for group in self._waiting for t in group if t.prepared is None]

    def _over(self) -> bool:
        return self._closing and not self._waiting and not self._members
