"""Memory of this process and of all that it started, at its height: with a local Ray, workers and object store too."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

EVERY_S = 0.2


@dataclass
class Height:
    """Filled in as long as it is watched."""

    mib: float = 0.0


@contextmanager
def watched() -> Iterator[Height]:
    """The height while this is open: what each process has to itself, and what most is shared (the object store)."""
    height, stopped = Height(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(height, stopped))
    watcher.start()
    try:
        yield height
    finally:
        stopped.set()
        watcher.join()


def _watch(height: Height, stopped: threading.Event) -> None:
    while not stopped.wait(EVERY_S):
        height.mib = max(height.mib, held_now() / 2**20)


def held_now() -> int:
    """Bytes."""
    import psutil

    own = psutil.Process()
    alone, shared = 0, 0
    for process in (own, *own.children(recursive=True)):
        try:
            told = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        alone += told.rss - getattr(told, "shared", 0)
        shared = max(shared, getattr(told, "shared", 0))
    return alone + shared
