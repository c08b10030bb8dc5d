"""The attempts of a run: who worked on it, from which step on, on how many workers; and what their time went to."""

import socket
import time
from dataclasses import asdict, dataclass
from typing import Any

from workflows.storage import exists, join, read_json, write_json
from workflows.tracking import ATTEMPT, Tracker
from workflows.training.goodput import Account, Goodput, Part, read, resumed
from workflows.training.parallel import Worker
from workflows.training.progress import read_goodput

FILE = "attempts.json"
WORLD_SIZE = "oneflow.world_size"


@dataclass(frozen=True, slots=True)
class Record:
    """One attempt that came as far as training."""

    attempt: int
    """From 1."""
    started: str
    """When it was ready to train, UTC."""
    start_step: int
    """Steps that were done before."""
    world_size: int
    host: str
    """Where rank 0 ran."""


class Attempt:
    """This attempt at a run. Every rank has one; rank 0 alone writes and tells.

    `begun` is when the run was started, in seconds since 1970, if it is the first attempt.
    """

    def __init__(self, root: str, worker: Worker, tracker: Tracker | None, begun: float | None) -> None:
        self._root, self._worker, self._tracker = root, worker, tracker
        self._begun = time.time() if begun is None else begun
        self._account = Account(Goodput(self._begun, time.time()))

    def go_on(self, step: int, committed: dict[str, Any] | None) -> None:
        """Ready to train after `step`; `committed` is the account in the checkpoint that it goes on from."""
        if not self._worker.leads:
            return
        last = read_goodput(self._root)
        self._account = Account(resumed(read(committed), last, self._begun, time.time()))
        told = [*read_attempts(self._root)]
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = Record(len(told) + 1, started, step, self._worker.world_size, socket.gethostname())
        told.append(asdict(record))
        write_json(join(self._root, FILE), told)
        if self._tracker:
            self._tracker.tags({ATTEMPT: str(record.attempt), WORLD_SIZE: str(record.world_size)})
            self._tracker.json(FILE, told)

    def enter(self, part: Part) -> None:
        """The time goes to `part` from now on."""
        self._account.enter(part)

    def roll_back(self, committed: dict[str, Any] | None) -> None:
        """What was done since the checkpoint with the account `committed` is lost; steps go on."""
        if self._worker.leads:
            now = self._account.now()
            self._account = Account(resumed(read(committed), now, self._begun, now.at))
            self._account.enter("steps")

    def goodput(self) -> Goodput:
        """The account up to now."""
        return self._account.now()


def read_attempts(root: str) -> list[dict[str, Any]]:
    """The fields of every `Record` of the run at `root`, in order."""
    url = join(root, FILE)
    return list(read_json(url)) if exists(url) else []
