"""Leases under a corpus root: who builds, reads or collects garbage there now, so that others wait or keep away.

A lease is held by a process. Its object is rewritten while the process lives; one that was not for `EXPIRY_S`, or
whose holder is a process of this machine that ended, holds no more. Leases that exclude each other have numbers,
`leases/<name>.<n>.json`, each written only if it is absent: whoever writes n + 1 has taken over from n, on any
store, whatever the two clocks say. Numbers are not used again.
"""

import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType

import psutil

from workflows.errors import OneFlowError
from workflows.storage import delete, exists, join, list_urls, put_atomic, read_bytes

EXPIRY_S = 120.0
"""Longer than a request is patient with a store that is away (`store_retries.PATIENCE_S`)."""
BEATS = 8
"""Times that a lease is renewed before it would expire."""
WAIT_STEP_S = 1.0
_NUMBERED = re.compile(r"(.+)\.(\d+)")
_CREATED_S = 5.0
"""Start times shift a little when the clock is set; a pid is not given again so soon."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, and until when: wall-clock seconds."""

    id: str
    host: str
    machine: str
    """Tells machines and containers apart that have the same name; pids mean something on one only."""
    pid: int
    created: float
    began: float
    renewed: float
    expiry_s: float
    released: bool = False

    @classmethod
    def me(cls, expiry_s: float) -> "Holder":
        """This process, from now on."""
        now, created = time.time(), psutil.Process().create_time()
        return cls(
            uuid.uuid4().hex, socket.gethostname(), _machine(), os.getpid(), created, now, now, expiry_s
        )

    def ended(self) -> str:
        """Why the lease holds no more; empty while it does."""
        if self.released:
            return "released"
        if self.machine == _machine() and not _runs(self.pid, self.created):
            return "its process ended"
        return "expired" if self.left_s() <= 0 else ""

    def left_s(self) -> float:
        """Seconds until it expires, if it is not renewed."""
        return self.renewed + self.expiry_s - time.time()

    def told(self) -> str:
        """The holder in words."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.began))
        return f"process {self.pid} on {self.host}, since {since} UTC"


class Lost(OneFlowError):
    """The lease was taken over while its holder did not renew it."""


class Lease:
    """A lease that this process holds, renewed by a thread until it is closed."""

    def __init__(self, url: str, holder: Holder, successor: str | None) -> None:
        self._url, self._holder, self._successor = url, holder, successor
        self._lapsed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise Lost if others may take the lease for ended; call it before what the lease guards is committed.

        So it is where another process has taken over, and where this one was paused, or cut off from the store, for
        longer than the expiry.
        """
        mend = "run the command again: it goes on where it was"
        if self._lapsed or self._holder.left_s() <= 0:
            cause = f"was not renewed for {self._holder.expiry_s:.0f} s"
            raise Lost(f"lease {self._url}", f"{cause}, so that others may have taken it for ended", mend)
        if self._successor is not None and exists(self._successor):
            holder = _read(self._successor)
            raise Lost(
                f"lease {self._url}",
                f"was taken over by {holder.told() if holder else 'another process'}",
                mend,
            )

    def close(self) -> None:
        """Let go, so that nobody has to wait for the expiry."""
        self._stop.set()
        self._thread.join()
        try:
            if self._successor is None:
                delete(self._url)
            else:
                _write(self._url, replace(self._holder, renewed=time.time(), released=True))
        except OneFlowError as error:
            print(f"lease: {error}", file=sys.stderr)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _beat(self) -> None:
        while not self._stop.wait(self._holder.expiry_s / BEATS):
            renewed = replace(self._holder, renewed=time.time())
            try:
                _write(self._url, renewed)
            except OneFlowError:
                # The store may come back before the lease expires; `check` tells if it did not.
                continue
            self._lapsed = self._lapsed or self._holder.left_s() <= 0
            self._holder = renewed


def claim(root: str, name: str, what: str, *, expiry_s: float = EXPIRY_S, wait_s: float = 0.0) -> Lease:
    """The lease `name` under `root`, which one process holds at a time. `what` is told of its holder ("is building").

    Waits up to `wait_s` for another holder to end.

    Raises:
        OneFlowError: another process holds it; the message names it, and when it would expire.
    """
    deadline = time.monotonic() + wait_s
    while True:
        number, holder = _newest(root, name)
        if holder is None or holder.ended():
            me = Holder.me(expiry_s)
            if _write(_url(root, name, number + 1), me, if_absent=True):
                return Lease(_url(root, name, number + 1), me, _url(root, name, number + 2))
        elif time.monotonic() >= deadline:
            raise _held(root, name, what, holder)
        else:
            time.sleep(WAIT_STEP_S)


def held(root: str, name: str) -> Holder | None:
    """Who holds the lease `name` now."""
    _, holder = _newest(root, name)
    return holder if holder and not holder.ended() else None


def share(root: str, name: str, *, expiry_s: float = EXPIRY_S) -> Lease:
    """A lease of this process's own, beside others with the same name."""
    me = Holder.me(expiry_s)
    url = join(root, "leases", f"{name}-{me.id}.json")
    _write(url, me, if_absent=True)
    return Lease(url, me, None)


@dataclass(frozen=True, slots=True)
class Survey:
    """The leases under a root: those in force, by name; file names of shared ones that ended, and of numbered ones
    that have a successor (which is what tells their holder, should it wake up)."""

    live: Mapping[str, Holder]
    ended: frozenset[str]
    succeeded: frozenset[str]


def survey(root: str) -> Survey:
    """All leases under `root` as they are now."""
    files = [url.rpartition("/")[2] for url in list_urls(join(root, "leases"))]
    numbers: dict[str, list[int]] = {}
    shared: dict[str, Holder | None] = {}
    for file in files:
        name = file.removesuffix(".json")
        if match := _NUMBERED.fullmatch(name):
            numbers.setdefault(match[1], []).append(int(match[2]))
        elif file.endswith(".json"):
            shared[name] = _read(join(root, "leases", file))
    live = {name: holder for name, holder in shared.items() if holder and not holder.ended()}
    live |= {name: holder for name in numbers if (holder := held(root, name)) is not None}
    return Survey(
        live,
        frozenset(f"{name}.json" for name in shared if name not in live),
        frozenset(f"{name}.{n}.json" for name, found in numbers.items() for n in found if n < max(found)),
    )


def wait_for(root: str, name: str, say: str) -> None:
    """Return when nobody holds the lease `name`; `say` is printed once, with the holder, if there is a wait."""
    told = False
    while (holder := held(root, name)) is not None:
        if not told:
            print(f"{say}: {holder.told()}", file=sys.stderr, flush=True)
        told = True
        time.sleep(WAIT_STEP_S)


def _newest(root: str, name: str) -> tuple[int, Holder | None]:
    """The highest number of the lease, 0 where there is none, and its holder; looks beyond a listing that is stale."""
    pattern = re.compile(rf"{re.escape(name)}\.(\d+)\.json")
    found = [pattern.fullmatch(url.rpartition("/")[2]) for url in list_urls(join(root, "leases"))]
    number = max((int(match[1]) for match in found if match), default=0)
    while exists(_url(root, name, number + 1)):
        number += 1
    return number, _read(_url(root, name, number)) if number else None


def _held(root: str, name: str, what: str, holder: Holder) -> OneFlowError:
    return OneFlowError(
        join(root, "leases", name),
        f"{what} by {holder.told()}",
        f"wait until it is done, or end it; if it died, its lease expires in {max(0.0, holder.left_s()):.0f} s",
    )


def _url(root: str, name: str, number: int) -> str:
    return join(root, "leases", f"{name}.{number}.json")


def _write(url: str, holder: Holder, if_absent: bool = False) -> bool:
    return put_atomic(url, (json.dumps(asdict(holder)) + "\n").encode(), if_absent=if_absent)


def _read(url: str) -> Holder | None:
    """The holder that is written at `url`; None where nothing (or nothing of ours) is."""
    try:
        return Holder(**json.loads(read_bytes(url)))
    except (ValueError, TypeError):
        return None
    except OneFlowError:
        if exists(url):
            raise
        return None


@cache
def _machine() -> str:
    """What pids belong to: this boot of this machine, and the container's own numbering of processes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    since = boot.read_text().strip() if boot.exists() else str(int(psutil.boot_time()))
    numbering = os.readlink("/proc/self/ns/pid") if Path("/proc/self/ns/pid").exists() else ""
    return f"{socket.gethostname()}/{since}/{numbering}"


def _runs(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < _CREATED_S
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
