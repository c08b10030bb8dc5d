"""Deliveries that never hold up who sends them: a bounded queue, one background thread, retries in order."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of the items: they add up to what was put in."""

    sent: int
    dropped: int
    """Pushed out of a full queue, oldest first."""
    rejected: int
    """Refused by the receiver for good; each was logged."""
    pending: int
    """Not delivered when the outbox was closed."""


class Outbox(Generic[S]):
    """Sends items, in order, through a session that is opened, and opened again, in the background.

    Args:
        connect: opens the session; it is tried again until it succeeds.
        permanent: tells an error that no retry can mend from one that may pass.
        capacity: items held at most; a full outbox drops its oldest item that may be dropped.
        retry_s: seconds between tries while the receiver is away.
        name: what the log calls the receiver.
    """

    def __init__(
        self,
        connect: Callable[[], S],
        permanent: Callable[[Exception], bool],
        *,
        capacity: int,
        retry_s: float,
        name: str,
    ) -> None:
        self._connect, self._permanent = connect, permanent
        self._capacity, self._retry_s, self._name = capacity, retry_s, name
        self._items: deque[tuple[Callable[[S], None], bool]] = deque()
        self._changed = threading.Condition()
        self._closing = self._away = self._done = False
        self._sent = self._dropped = self._rejected = 0
        self._session: S | None = None
        self._thread = threading.Thread(target=self._run, name=f"outbox-{name}", daemon=True)
        self._thread.start()

    def put(self, send: Callable[[S], None], *, droppable: bool = True) -> None:
        """Queue `send`, which gets the session; returns at once."""
        with self._changed:
            if len(self._items) >= self._capacity:
                self._drop_oldest()
            self._items.append((send, droppable))
            self._changed.notify_all()

    def session(self, timeout_s: float) -> S | None:
        """The session once it is open, or None when it did not open in `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._session is not None or self._done, timeout_s)
            return self._session

    def close(self, timeout_s: float) -> Delivery:
        """Deliver what is queued, for at most `timeout_s`, then stop; says what was delivered."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._done, max(0.0, deadline - time.monotonic()))
            self._done = True
            self._changed.notify_all()
            return Delivery(self._sent, self._dropped, self._rejected, len(self._items))

    def _run(self) -> None:
        while (send := self._next()) is not None:
            try:
                if self._session is None:
                    self._opened(self._connect())
                if self._session is not None:
                    send(self._session)
                self._settle(sent=True)
            except Exception as error:
                self._failed(error)
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def _next(self) -> Callable[[S], None] | None:
        """The oldest item, left in the queue until it is settled; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._closing)
            return self._items[0][0] if self._items and not self._done else None

    def _opened(self, session: S) -> None:
        with self._changed:
            self._session = session
            self._changed.notify_all()

    def _settle(self, *, sent: bool) -> None:
        with self._changed:
            if self._away:
                log.info("%s is back; %d items were waiting", self._name, len(self._items))
            self._away = False
            self._items.popleft()
            self._sent += sent
            self._rejected += not sent

    def _failed(self, error: Exception) -> None:
        if self._session is not None and self._permanent(error):
            log.warning("%s refused an item: %s", self._name, error)
            self._settle(sent=False)
            return
        if not self._away:
            log.warning("%s is away (%s); going on, it is told later", self._name, str(error)[:200])
        self._away = True
        with self._changed:
            self._changed.wait_for(lambda: self._done, self._retry_s)

    def _drop_oldest(self) -> None:
        """Drop the oldest item that may be, never the first: it may be on its way."""
        for index in range(1, len(self._items)):
            if self._items[index][1]:
                del self._items[index]
                self._dropped += 1
                return
