"""A count that tasks on the cluster add to and the driver tells of, where results come only at the end."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workflows.corpus.progress import EVERY_S, Progress

WORTH_TELLING = 20_000
"""Fewer are done before a count would say much; the actor that counts takes a process."""


class Tally:
    """A handle of the count, for tasks."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def add(self, count: int) -> None:
        """So many more are done; does not wait."""
        self._actor.add.remote(count)


class _Count:
    def __init__(self) -> None:
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count

    def done(self) -> int:
        return self._done


@contextmanager
def tallied(
    stage: str, total: int, unit: str, every: float = EVERY_S, least: int = WORTH_TELLING
) -> Iterator[Tally | None]:
    """Tells every few seconds how much of `total` tasks have added; None where there is little to do."""
    if total < least:
        yield None
        return
    import ray

    actor = ray.remote(num_cpus=0)(_Count).remote()
    stopped = threading.Event()
    teller = threading.Thread(target=_tell, args=(actor, Progress(stage, total, unit, every), stopped, every))
    teller.start()
    try:
        yield Tally(actor)
    finally:
        stopped.set()
        teller.join()
        ray.kill(actor)


def _tell(actor: Any, progress: Progress, stopped: threading.Event, every: float) -> None:
    import ray

    told = 0
    while not stopped.wait(every):
        done = ray.get(actor.done.remote())
        progress.add(done - told)
        told = done
