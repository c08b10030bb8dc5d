"""Units as tasks of Ray, one each: a worker that dies takes its unit along, no other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from workflows.corpus.cluster import Environment, cpus
from workflows.corpus.units import Unit
from workflows.errors import OneFlowError

DEATHS = 3
"""So many workers may die over a unit (a decoder that crashes, memory that is not enough) before it is given up."""
LOSSES = 20
"""So many times a unit's task may be lost with its machine, for which the unit is not to blame."""
AT_ONCE = 4
"""Tasks handed to Ray for each CPU: the next are ready when one ends, and a cluster sees what is to come."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Died:
    """What is told of a unit over which `DEATHS` workers died."""

    cause: str


def each(units: Sequence[Unit], work: Callable[[Unit], T]) -> Iterator[tuple[Unit, T | Died]]:
    """Each unit with what `work` gives for it, as they are done; Ray has to be up.

    An error that `work` raises is raised. A worker that dies is no error: its unit is tried again, then given up.
    """
    import ray

    task = ray.remote(max_retries=0)(_worked)
    shared = ray.put((work, Environment.of_driver()))
    waiting = list(range(len(units)))[::-1]
    tries = [(0, 0)] * len(units)
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE * cpus():
                number = waiting.pop()
                running[task.remote(shared, units[number])] = number
            (done, *_), _ = ray.wait(list(running))
            number = running.pop(done)
            found = _got(done, units[number])
            if isinstance(found, _Lost):
                tries[number] = _counted(tries[number], found, units[number])
                if tries[number][0] < DEATHS:
                    waiting.append(number)
                    continue
                found = Died(found.cause)
            yield units[number], found
    finally:
        for left in running:
            ray.cancel(left)


@dataclass(frozen=True, slots=True)
class _Lost:
    own: bool
    cause: str


def _worked(shared: tuple[Callable[[Unit], T], Environment], unit: Unit) -> T:
    work, environment = shared
    environment.apply()
    return work(unit)


def _got(done: Any, unit: Unit) -> Any:
    import ray.exceptions

    try:
        return ray.get(done)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        return _Lost(True, f"{type(error).__name__}: {error}")
    except (
        ray.exceptions.NodeDiedError,
        ray.exceptions.LocalRayletDiedError,
        ray.exceptions.ObjectLostError,
    ) as error:
        return _Lost(False, f"{type(error).__name__}: {error}")


def _counted(tries: tuple[int, int], lost: _Lost, unit: Unit) -> tuple[int, int]:
    deaths, losses = tries[0] + lost.own, tries[1] + (not lost.own)
    if losses >= LOSSES:
        raise OneFlowError(
            unit.main, f"its task was lost {losses} times ({lost.cause})", "see to the cluster's nodes"
        )
    return deaths, losses
