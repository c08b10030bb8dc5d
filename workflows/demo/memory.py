"""Peak memory of many processes together, sampled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


class MemoryWatch:
    """The most that a set of processes and their descendants held at one moment, as far as sampling sees it.

    Counted is the proportional set size: what processes share is counted once.
    """

    def __init__(self, roots: Callable[[], Iterable[int]], every_s: float = 5.0) -> None:
        self.peak_bytes = 0
        self._roots, self._every_s = roots, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory watch", daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Samples for as long as the context is open."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
            self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, held_bytes(self._roots()))


def held_bytes(roots: Iterable[int]) -> int:
    """Proportional set size of `roots` and their descendants, in bytes; processes that are gone count nothing."""
    return sum(_pss(process) for process in family(roots).values())


def family(roots: Iterable[int]) -> dict[int, psutil.Process]:
    """`roots` and all their descendants, by pid."""
    members: dict[int, psutil.Process] = {}
    for pid in roots:
        with suppress(*GONE):
            root = psutil.Process(pid)
            members |= {p.pid: p for p in [root, *root.children(recursive=True)]}
    return members


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except GONE:
        return 0
