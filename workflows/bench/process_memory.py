"""Memory of a server's processes over time, and whether it grows: a slope with the interval that it is known to.

What is followed is what a process has to itself. What it shares is the object store, through which Ray moves bodies of
more than 100 kB: it is bounded, but counts into the resident memory of all who ever touched its pages.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

EVERY_S = 5.0
BLOCK_S = 60.0
"""Samples are averaged over so long before a line is laid through them: neighbours resemble each other."""
MIB = 2**20
ROLES = {
    "ServeReplica": "replica",
    "serving.model_process": "model",
    "ProxyActor": "proxy",
    "ServeController": "controller",
    "raylet": "raylet",
    "gcs_server": "gcs",
}
"""A part of the name of a process, or of the module that it runs -> what it is."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one process."""

    at_s: float
    own_mib: float
    """Resident memory that it shares with nobody."""
    rss_mib: float
    files: int
    """Open file descriptors."""


@dataclass
class Watch:
    """Samples of every process seen, in order, by (role, process id)."""

    root: int
    begun: float = field(default_factory=time.monotonic)
    samples: dict[tuple[str, int], list[Sample]] = field(default_factory=lambda: defaultdict(list))

    def look(self) -> None:
        """One sample of each process there is now."""
        now = time.monotonic() - self.begun
        for role, process in processes(self.root):
            try:
                own, rss = held(process)
                files = process.num_fds()
            except psutil.Error:
                continue
            self.samples[role, process.pid].append(Sample(now, own, rss, files))

    def figures(self, warm_s: float) -> dict[str, Any]:
        """What each process held, from `warm_s` after it was first seen on."""
        told: dict[str, Any] = {}
        for (role, pid), samples in sorted(self.samples.items()):
            warm = [s for s in samples if s.at_s >= samples[0].at_s + warm_s]
            if len(warm) > 2:
                told[f"{role} {pid}"] = figures(warm)
        return told

    def series(self) -> dict[str, list[float]]:
        """MiB by process, the mean of each `BLOCK_S` from its beginning on."""
        told: dict[str, list[float]] = {}
        for (role, pid), samples in sorted(self.samples.items()):
            at, own = np.array([s.at_s for s in samples]), np.array([s.own_mib for s in samples])
            block = (at - at[0]) // BLOCK_S
            told[f"{role} {pid}"] = [round(float(own[block == b].mean()), 1) for b in np.unique(block)]
        return told


def held(process: psutil.Process) -> tuple[float, float]:
    """MiB that a process has to itself, and all that it has touched."""
    told = process.memory_info()
    return (told.rss - getattr(told, "shared", 0)) / MIB, told.rss / MIB


def processes(root: int) -> list[tuple[str, psutil.Process]]:
    """The processes of the server whose command is `root`, with what they are."""
    try:
        command = psutil.Process(root)
        below = command.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = [("command", command)]
    for process in below:
        try:
            first, *rest = process.cmdline() or [""]
            line = f"{first} {rest[1]}" if rest[:1] == ["-m"] else first
        except psutil.Error:
            continue
        found += [(role, process) for part, role in ROLES.items() if part in line][:1]
    return found


@contextmanager
def watched(root: int) -> Iterator[Watch]:
    """Looks every `EVERY_S` seconds while this is open."""
    watch, ended = Watch(root), threading.Event()

    def run() -> None:
        while not ended.wait(EVERY_S):
            watch.look()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def figures(samples: Sequence[Sample]) -> dict[str, float]:
    """Of one process: MiB at the beginning, the end and at most, and MiB per hour with its interval (see `growth`)."""
    at = np.array([s.at_s for s in samples])
    own = np.array([s.own_mib for s in samples])
    half = at >= (at[0] + at[-1]) / 2
    return {
        "minutes": float(at[-1] - at[0]) / 60,
        "first_mib": float(own[:3].mean()),
        "last_mib": float(own[-3:].mean()),
        "most_mib": float(own.max()),
        **_slope("mib_per_hour", at, own),
        **_slope("mib_per_hour_second_half", at[half], own[half]),
        "rss_first_mib": samples[0].rss_mib,
        "rss_last_mib": samples[-1].rss_mib,
        "files_first": float(samples[0].files),
        "files_last": float(samples[-1].files),
    }


def _slope(name: str, at_s: np.ndarray, mib: np.ndarray) -> dict[str, float]:
    slope, error = growth(at_s, mib)
    known = np.isfinite(error)
    return {name: slope, f"{name}_low": slope - error, f"{name}_high": slope + error} if known else {}


def growth(at_s: np.ndarray, mib: np.ndarray) -> tuple[float, float]:
    """MiB per hour of a least-squares line through the means of `BLOCK_S`, and two of its standard errors (about 95 %).

    The error comes of the blocks' residuals; with fewer than four blocks it is infinite.
    """
    block = (at_s - at_s[0]) // BLOCK_S
    x = np.array([at_s[block == b].mean() for b in np.unique(block)]) / 3600
    y = np.array([mib[block == b].mean() for b in np.unique(block)])
    if len(x) < 2:
        return 0.0, float("inf")
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    free = len(x) - 2
    if free < 2:
        return slope, float("inf")
    rest = y - y.mean() - slope * (x - x.mean())
    return slope, 2 * float(np.sqrt((rest**2).sum() / free / spread))
