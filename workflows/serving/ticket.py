"""One document in the making, between the request that waits for it and the threads that make it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oneflow_core.pipeline import GeneratedDocument, Prompt
    from oneflow_core.running import Options, Prepared, Snapshot

log = logging.getLogger("ray.serve")

SNAPSHOTS = 16
"""States of a document that wait for a reader; of one that reads more slowly, the oldest are passed over."""


@dataclass(frozen=True, slots=True)
class Work:
    """One document to make."""

    prompt: Prompt
    seed: int
    options: Options


class Ticket:
    """One document in the making, as its request sees it. What is public belongs to the event loop."""

    def __init__(
        self, key: int, request: int, work: Work, watched: bool, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.key, self.request = key, request
        self.work, self.watched, self._loop = work, watched, loop
        self.made: asyncio.Future[GeneratedDocument] = loop.create_future()
        self.made.add_done_callback(lambda f: f.cancelled() or f.exception())
        self.news = asyncio.Event()
        self.ahead: int | None = None
        """Documents that get a place before this one; None while it need not wait."""
        self.prepared: Prepared | None = None
        self.prompt_tokens = 0
        """Once it is prepared; an image counts as one."""
        self.since = time.perf_counter()
        self._snapshots: deque[Snapshot] = deque(maxlen=SNAPSHOTS)

    def seen(self) -> list[Snapshot]:
        """The document's states since the last call, in order."""
        snapshots = []
        while self._snapshots:
            snapshots.append(self._snapshots.popleft())
        return snapshots

    def place(self, ahead: int | None) -> None:
        """Any thread: how many are in front."""
        if self.ahead != ahead:
            self.ahead = ahead
            self._on_loop(self.news.set)

    def show(self, snapshot: Snapshot) -> None:
        """Any thread: what there is of the document now."""
        self._snapshots.append(snapshot)
        self._on_loop(self.news.set)

    def settle(self, made: GeneratedDocument | Exception) -> None:
        """Any thread: it is done, or will never be."""
        self._on_loop(lambda: self._settle(made))

    def _settle(self, made: GeneratedDocument | Exception) -> None:
        if not self.made.done():
            if isinstance(made, Exception):
                self.made.set_exception(made)
            else:
                self.made.set_result(made)
        self.news.set()

    def _on_loop(self, call: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            log.debug("a document outlived its event loop")
