"""Where workers stand when training does not go on: stacks of this process, and who has not arrived."""

import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import torch

COLLECTIVE = "torch/distributed/"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a thread is."""

    frame: str
    """file:line function of the innermost frame outside of torch."""
    collective: bool
    """Whether it is inside torch.distributed, where it waits for others."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the training thread of a worker is, and for how long."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    seconds: float
    place: Place

    def line(self) -> str:
        """For people."""
        at = f"{self.phase} of step {self.step} for {self.seconds:.0f} s"
        waits = "waits for others" if self.place.collective else "waits for nobody"
        return f"rank {self.rank} (pid {self.pid} on {self.host}): {at}, {waits}, {self.place.frame}"


def stacks() -> str:
    """The Python stacks of all threads of this process, the main one first."""
    frames, parts = sys._current_frames(), []
    main = threading.main_thread()
    for thread in sorted(threading.enumerate(), key=lambda t: t is not main):
        if thread.ident in frames and thread is not threading.current_thread():
            lines = "".join(traceback.format_stack(frames[thread.ident]))
            parts.append(f"thread {thread.name}:\n{lines}")
    return "\n".join(parts)


def place_of(thread: threading.Thread) -> Place:
    """Where `thread` is now."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return Place("its thread is gone", False)
    found = traceback.extract_stack(frame)
    own = [f for f in found if torch.__path__[0] not in f.filename] or list(found)
    return Place(
        f"{own[-1].filename}:{own[-1].lineno} {own[-1].name}", any(COLLECTIVE in f.filename for f in found)
    )


def behind(standings: Sequence[Standing], ranks: int, phases: Sequence[str]) -> list[int]:
    """Ranks for which the others wait: silent ones; else those furthest back; else those in no collective."""
    heard = {s.rank for s in standings}
    if silent := [rank for rank in range(ranks) if rank not in heard]:
        return silent
    order = {name: number for number, name in enumerate(phases)}
    # What is no part of a step lies between two: behind the last part of its step.
    places = {s.rank: (s.step, order.get(s.phase, -1)) for s in standings}
    if len(set(places.values())) > 1:
        first = min(places.values())
        return [rank for rank, place in places.items() if place == first]
    free = [s.rank for s in standings if not s.place.collective]
    return free if len(free) < len(standings) or ranks == 1 else []


def told(standings: Sequence[Standing], peers: Sequence[tuple[str, int]], phases: Sequence[str]) -> str:
    """All ranks, one a line, and who has not arrived."""
    late = behind(standings, len(peers), phases)
    held = {s.rank: s.line() for s in standings}
    lines = [held.get(rank, _silent(rank, *peers[rank])) for rank in range(len(peers))]
    names = ", ".join(f"rank {rank}" for rank in late)
    end = f"not arrived: {names}" if late else "all ranks wait for each other: look at the network"
    return "\n".join([*lines, end])


def _silent(rank: int, host: str, pid: int) -> str:
    asked = f"on {host}: py-spy dump --pid {pid}"
    return f"rank {rank} (pid {pid} on {host}): wrote nothing: it is dead, stopped or cut off; {asked}"
