"""Thousands of requests that should not be: none may fail the server, hold it up, or get anything out of it.

`ratio` is the share of requests that were answered as such a request should be: 4xx with its words, a closed connection
where it was no HTTP, or an answer where it happened to be a request. After each `EVERY` a good one gets its document.
"""

from __future__ import annotations

import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from workflows.bench.child import ROOT
from workflows.bench.garbage_wire import Case, Place, case
from workflows.bench.process_memory import held, processes
from workflows.bench.result import Result
from workflows.bench.server import server
from workflows.client import Client

AT_ONCE = 8
PATIENCE_S = 60.0
MOST_BYTES = 1 << 24
# The longest first, as one may lie within another.
PLACES = sorted({str(ROOT), str(Path.home()), sys.prefix, tempfile.gettempdir()}, key=len, reverse=True)
LEAKS = re.compile(
    rb'Traceback|File "|site-packages|\.py\b|root:x:|set-cookie:|'
    + b"|".join(re.escape(place.encode()) for place in PLACES)
)
"""What no answer to garbage may hold."""
STATUS = re.compile(rb"HTTP/1\.[01] ([2-5]\d\d) ")
EVERY = 500
"""After so many pieces of garbage a good request is asked."""


@dataclass
class Findings:
    """What came back; any thread."""

    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    objections: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, number: int, sent: Case, said: bytes, seconds: float, hung: bool) -> None:
        """One answer, and what is wrong with it."""
        status = status_of(said)
        wrong = "hangs" if hung else objection(sent, said)
        with self._lock:
            self.kinds[sent.kind] += 1
            self.statuses[str(status or "closed")] += 1
            self.slowest = max(self.slowest, (seconds, sent.kind))
            if wrong:
                self.objections.append(
                    f"{number} {sent.kind}: {wrong}: {said[:300]!r} to {sent.wire[:400]!r}"
                )


def status_of(said: bytes) -> int:
    """Of the first answer; 0 where there is none."""
    found = STATUS.search(said)
    return int(found.group(1)) if found else 0


def objection(sent: Case, said: bytes) -> str:
    """What is wrong with an answer; nothing where nothing is."""
    statuses = [int(s) for s in STATUS.findall(said)]
    if leak := LEAKS.search(said):
        return f"tells {leak.group()!r}"
    if not statuses:
        return "" if sent.quiet else "no answer"
    if any(status >= 500 for status in statuses):
        return "a failure of the server"
    return "" if statuses[0] in sent.statuses or sent.after == "leave" else f"status {statuses[0]}"


def ask(sent: Case, place: Place) -> tuple[bytes, bool]:
    """Sends the garbage; what came back up to the end of the connection, and whether it did not come to an end."""
    host, _, port = place.netloc.rpartition(":")
    said, deadline = bytearray(), time.monotonic() + PATIENCE_S
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as wire:
        try:
            wire.sendall(sent.wire)
            if sent.after == "leave":
                return b"", False
            if sent.after == "half":
                wire.shutdown(socket.SHUT_WR)
            while len(said) < MOST_BYTES and time.monotonic() < deadline:
                part = wire.recv(1 << 16)
                if not part:
                    return bytes(said), False
                said += part
        except TimeoutError:
            return bytes(said), True
        except OSError:
            return bytes(said), False
    return bytes(said), True


def throw(numbers: range, place: Place, findings: Findings) -> None:
    """One piece of garbage for each number, `AT_ONCE` at once."""

    def one(number: int) -> None:
        sent = case(number, place)
        begun = time.perf_counter()
        said, hung = ask(sent, place)
        findings.add(number, sent, said, time.perf_counter() - begun, hung)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, numbers))


@contextmanager
def listener() -> Iterator[tuple[str, list[str]]]:
    """An address and who came to it: nobody should."""
    came: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0.1)
        ended = threading.Event()

        def wait() -> None:
            while not ended.is_set():
                try:
                    visitor, address = door.accept()
                except TimeoutError:
                    continue
                came.append(str(address))
                visitor.close()

        thread = threading.Thread(target=wait)
        thread.start()
        try:
            yield f"127.0.0.1:{door.getsockname()[1]}", came
        finally:
            ended.set()
            thread.join()


def run(requests: int) -> Result:
    """`ratio` of `requests`; memory of every process before and after each `EVERY` of them."""
    findings, good_s = Findings(), []
    memory: dict[str, list[float]] = {}
    with (
        server("embedded", {"body-timeout": 5}) as (url, pid),
        listener() as (unreached, came),
        Client(url, attempts=4) as client,
    ):
        place = Place(url.removeprefix("http://"), listener=unreached)
        first = client.generate(["a red circle"], seed=5, steps=8).images[0]
        begun = time.perf_counter()
        for start in range(0, requests, EVERY):
            throw(range(start, min(start + EVERY, requests)), place, findings)
            asked = time.perf_counter()
            again = client.generate(["a red circle"], seed=5, steps=8).images[0]
            good_s.append(time.perf_counter() - asked)
            if again.tobytes() != first.tobytes():
                findings.objections.append(f"after {start + EVERY}: a good request got another picture")
            for role, process in processes(pid):
                memory.setdefault(f"{role} {process.pid}", []).append(held(process)[0])
        seconds = time.perf_counter() - begun
    findings.objections += [f"reached from {address}" for address in came]
    extra = {
        "objections": findings.objections[:20],
        "statuses": dict(findings.statuses.most_common()),
        "kinds": dict(findings.kinds.most_common()),
        "requests_per_s": requests / seconds,
        "slowest_s": findings.slowest[0],
        "slowest": findings.slowest[1],
        "good_request_s": {"most": max(good_s), "last": good_s[-1]},
        "memory_mib": {who: {"first": mib[0], "last": mib[-1]} for who, mib in memory.items()},
    }
    right = requests - len(findings.objections)
    packages = ("torch", "ray", "fastapi", "uvicorn", "pillow")
    return Result("garbage", "requests", [right], [requests], packages, extra, memory)
