"""Work done ahead of time, in a thread, without a word to who asks for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Made(Generic[T]):
    item: T


def read_ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """`items`, made by a thread up to `depth` before they are asked for; what making them raises is raised here.

    The thread ends when the iterator is closed or let go.
    """
    made: queue.Queue[_Made[T] | BaseException | None] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    arguments = (items, made, stop)
    threading.Thread(target=_make, args=arguments, name="read-ahead", daemon=True).start()
    try:
        while (result := made.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result.item
    finally:
        stop.set()


def _make(
    items: Iterator[T], made: queue.Queue[_Made[T] | BaseException | None], stop: threading.Event
) -> None:
    last: BaseException | None = None
    try:
        for item in items:
            _offer(_Made(item), made, stop)
            if stop.is_set():
                return
    except BaseException as error:
        last = error
    _offer(last, made, stop)


def _offer(
    result: _Made[T] | BaseException | None,
    made: queue.Queue[_Made[T] | BaseException | None],
    stop: threading.Event,
) -> None:
    while not stop.is_set():
        try:
            return made.put(result, timeout=0.2)
        except queue.Full:
            continue
