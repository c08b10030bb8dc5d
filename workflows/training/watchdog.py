"""Notices that training does not go on, tells where each worker stands, and ends this one.

A collective that one worker never joins holds all others for ever, without a word. So every worker has a thread that
looks at the clock: when a part of a step has not ended in time it writes this worker's stacks below the run's root,
reads what the others wrote, says who has not arrived, and ends the process, which Ray Train answers with a new group.
It needs no answer from the training thread, the process group or its store, any of which may be what hangs.
"""

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch.profiler import record_function

from workflows.errors import OneFlowError
from workflows.storage import exists, join, put_atomic, read_json, write_json
from workflows.tracking import Tracker
from workflows.training.parallel import Worker
from workflows.training.stall import Place, Standing, behind, place_of, stacks, told

log = logging.getLogger(__name__)

STALLED = 70
"""Exit code of a worker that ended itself."""
SLOW = 4
"""How many times longer the first step may take, and what is no part of a step."""
PHASES = ("data", "agree", "forward", "backward", "optimiser")
"""Parts of a step in their order."""
FLUSH_S = 10.0
DEAD_S = 120.0
"""Seconds after the timeout in which a process that cannot even report is ended, stacks on its stderr."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """What the training thread is at."""

    step: int
    phase: str
    since: float
    patience_s: float


class Watchdog:
    """Watches the training thread of this worker while the context is open. All ranks make and enter one.

    Args:
        timeout_s: seconds that a part of a step may take.
        tracker: gets the report, on the rank that has one.
    """

    def __init__(self, worker: Worker, root: str, timeout_s: float, tracker: Tracker | None = None) -> None:
        self._worker, self._root, self._timeout_s, self._tracker = worker, root, timeout_s, tracker
        self._first: int | None = None
        self._slow = True
        self._mark = _Mark(0, "start", time.monotonic(), SLOW * timeout_s)
        self._stop = threading.Event()
        self._peers: list[tuple[str, int]] = []
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        here = (socket.gethostname(), os.getpid())
        peers: list[Any] = [None] * self._worker.world_size
        dist.all_gather_object(peers, here)
        self._peers = peers
        self._mark = _Mark(0, "start", time.monotonic(), SLOW * self._timeout_s)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[None]:
        """The training thread is at `name` of `step`; a range of that name in a profile."""
        self._enter(name, step)
        with record_function(name):
            yield

    def _enter(self, name: str, step: int) -> None:
        self._first = step if self._first is None else self._first
        if name == "forward":
            # All have come through `agree`, so nobody is at anything slow any more.
            self._slow = step == self._first
        elif name not in PHASES:
            self._slow = True
        patience = (SLOW if self._slow else 1) * self._timeout_s
        self._mark = _Mark(step, name, time.monotonic(), patience)

    def _watch(self) -> None:
        poll = min(5.0, self._timeout_s / 10)
        while not self._stop.wait(poll):
            mark = self._mark
            left = mark.since + mark.patience_s - time.monotonic()
            # Should this thread not come to run again, a thread of C ends the process.
            faulthandler.dump_traceback_later(max(left, 0) + self._timeout_s + DEAD_S, exit=True, file=2)
            if left < 0:
                self._end(mark)

    def _end(self, mark: _Mark) -> None:
        """Report and end the process, whatever becomes of the report."""
        try:
            self._report(mark)
        except BaseException:
            log.exception("the stall could not be reported in full")
        finally:
            for handler in logging.getLogger().handlers:
                with suppress(Exception):
                    handler.flush()
            sys.stderr.flush()
            os._exit(STALLED)

    def _report(self, mark: _Mark) -> None:
        seconds = time.monotonic() - mark.since
        host, pid = self._peers[self._worker.rank]
        place = place_of(threading.main_thread())
        mine = Standing(self._worker.rank, host, pid, mark.step, mark.phase, seconds, place)
        text = f"{mine.line()}\n\n{stacks()}"
        log.error("no part of training has ended in %.0f s\n%s", seconds, text)
        self._put(mine, text)
        standings = self._gathered(mine)
        summary = told(standings, self._peers, PHASES)
        log.error("%s", summary)
        try:
            put_atomic(join(self._root, "stalls", f"step-{mark.step:09d}", "summary.txt"), summary.encode())
        except OneFlowError as error:
            log.warning("the summary of the stall is not stored: %s", error)
        if self._tracker:
            late = behind(standings, len(self._peers), PHASES)
            self._tracker.tags({"oneflow.stalled": f"step {mark.step}, not arrived: {late}"})
            self._tracker.text(f"stalls/step-{mark.step:09d}.txt", f"{summary}\n\n{text}")
            self._tracker.close("FAILED", FLUSH_S)

    def _put(self, mine: Standing, text: str) -> None:
        base = join(self._root, "stalls", f"step-{mine.step:09d}", f"rank-{mine.rank:05d}")
        try:
            put_atomic(f"{base}.txt", text.encode())
            write_json(f"{base}.json", {**asdict(mine), "time": time.time()})
        except OneFlowError as error:
            log.warning("the stacks are not stored: %s", error)

    def _gathered(self, mine: Standing) -> list[Standing]:
        """What all ranks wrote of this stall, after some patience with those that have not."""
        begun, until = time.time(), time.monotonic() + min(30.0, max(2.0, self._timeout_s / 5))
        found = {mine.rank: mine}
        while len(found) < len(self._peers) and time.monotonic() < until:
            time.sleep(0.2)
            for rank in set(range(len(self._peers))) - found.keys():
                with suppress(OneFlowError):
                    if standing := self._read(rank, mine.step, begun - self._timeout_s):
                        found[rank] = standing
        return [found[rank] for rank in sorted(found)]

    def _read(self, rank: int, step: int, after: float) -> Standing | None:
        """What `rank` wrote after a time; workers are at most one step apart."""
        for near in (step, step - 1, step + 1):
            url = join(self._root, "stalls", f"step-{max(near, 0):09d}", f"rank-{rank:05d}.json")
            if exists(url) and (held := read_json(url)).pop("time") > after:
                return Standing(**{**held, "place": Place(**held["place"])})
        return None
