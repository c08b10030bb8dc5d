"""Processes that outlive the command that started them, known by pid and creation time, with all they started."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel

from workflows.errors import OneFlowError

MARKER = "ONEFLOW_STACK_SERVICE"
"""Environment variable that a service and all it starts inherit: who belongs to it is seen by this alone."""
_SAME_TIME_S = 0.05
KILL_TIMEOUT_S = 20.0


class Launch(BaseModel):
    """How to start a service: its argument list and what it adds to the environment."""

    argv: list[str]
    env: dict[str, str]
    unset: list[str] = []


class Record(BaseModel):
    """A started process. A pid alone may have been given to another process since."""

    pid: int
    create_time: float
    marker: str
    fingerprint: str
    """Digest of what it was launched with; another one means that it must be started anew."""

    def process(self) -> psutil.Process | None:
        """The process, or None when it ended (a pid that another process has now counts as ended)."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < _SAME_TIME_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def spawn(launch: Launch, marker: str, fingerprint: str, log: Path, cwd: Path) -> Record:
    """Start `launch` in a session of its own, output appended to `log`."""
    env = {name: value for name, value in os.environ.items() if name not in launch.unset}
    env |= launch.env | {MARKER: marker}
    with log.open("ab") as output:
        started = subprocess.Popen(
            launch.argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    created = psutil.Process(started.pid).create_time()
    _started.append(started)
    return Record(pid=started.pid, create_time=created, marker=marker, fingerprint=fingerprint)


def members(marker: str) -> list[psutil.Process]:
    """Every live process of ours that inherited `marker`."""
    return [process for process in psutil.process_iter() if _marker_of(process) == marker]


def stop(record: Record, grace_s: float = 15.0) -> None:
    """Ask the process to end, wait, then end by force what is left of it and of all it started."""
    root = record.process()
    if root is not None:
        _signal([root], force=False)
        psutil.wait_procs([root], timeout=grace_s)
    sweep(record.marker)


def sweep(marker: str, grace_s: float = 3.0) -> None:
    """End whatever still carries `marker`, by force after `grace_s`; returns when nothing does."""
    begun = time.monotonic()
    while left := members(marker):
        waited = time.monotonic() - begun
        if waited > grace_s + KILL_TIMEOUT_S:
            pids = ", ".join(str(process.pid) for process in left)
            raise OneFlowError(
                f"stack: pids {pids}", "they do not end", "look at them with ps, then try again"
            )
        _signal(left, force=waited > grace_s)
        psutil.wait_procs(left, timeout=0.5)
    for child in _started:
        child.poll()


def tail(log: Path, lines: int = 4) -> str:
    """The last non-empty lines of `log` on one line, for an error text."""
    if not log.exists():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4096))
        text = stream.read().decode(errors="replace")
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


_started: list[subprocess.Popen[bytes]] = []


def _signal(processes: Sequence[psutil.Process], force: bool) -> None:
    for process in processes:
        try:
            process.kill() if force else process.terminate()
        except psutil.NoSuchProcess:
            continue


def _marker_of(process: psutil.Process) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        environment: Mapping[str, str] = process.environ()
        return environment.get(MARKER)
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return None
