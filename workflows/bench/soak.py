"""A server under mixed load at its queue's limit for a long while: is an answer lost or swapped, does memory grow?

`CLIENTS` clients ask one of everything: captions, pictures, documents, streams, chats, requests that are refused,
callers that leave in the middle or send a byte a second; bursts come on top, and one replica of two is killed (-9)
now and then, always the younger, so that the other's memory can be followed from beginning to end. What is refused for
now (429, 503) is asked again until it is answered. Each request's answer is held against the one that it got first.

`ratio` is the share of attempts that ended as they should: the same answer as before, a refusal that the request
earned, 429 with Retry-After, or 503 within `MEND_S` of a kill.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import psutil

from workflows.bench.process_memory import Watch, processes, watched
from workflows.bench.result import Result
from workflows.bench.server import server
from workflows.bench.soak_answers import Book
from workflows.bench.soak_requests import DISTINCT, Asker, Outcome, once
from workflows.errors import OneFlowError

BATCH, QUEUE, REPLICAS = 8, 8, 2
CLIENTS = 28
BURST, BURST_EVERY_S = 48, 20.0
SLOW_CLIENTS = 2
HANG_S = 120.0
"""An attempt that takes longer hangs."""
ANSWERED_S = 300.0
"""A request that is not answered within so long, over all its attempts, is lost."""
MEND_S = 90.0
"""For so long after a kill 503 is what should come."""
KILLS = 5
SHARES = {
    "caption": 24,
    "picture": 20,
    "document": 8,
    "stream caption": 8,
    "stream picture": 8,
    "stream document": 4,
    "chat": 4,
    "pictures": 4,
    "leave stream": 5,
    "leave early": 4,
    "leave sending": 2,
    "bad": 6,
    "look": 3,
}
LOOKS = ("/healthz", "/metrics", "/openapi.json", "/v1/models", "/")


def run(minutes: int) -> Result:
    """`ratio`, counts by kind and status, seconds, and memory."""
    options = {"replicas": REPLICAS, "batch": BATCH, "queue": QUEUE, "body-timeout": 5}
    with server("embedded", options) as (url, pid), watched(pid) as watch:
        soak = Soak(url, pid, 60.0 * minutes)
        soak.run()
        left = idle(url)
    return soak.result(watch, left)


@dataclass
class Tally:
    """What came; any thread."""

    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and status."""
    wrong: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """To the answer, of attempts with status 200."""
    requests: Counter[str] = field(default_factory=Counter)
    """asked, answered, lost; a request is one however often it is attempted."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, outcome: Outcome, seconds: float, wrong: str) -> None:
        """One attempt."""
        status = {0: "left", -1: "nothing"}.get(outcome.status, str(outcome.status))
        with self.lock:
            self.attempts[kind, status] += 1
            if wrong:
                self.wrong[f"{kind}, {status}: {wrong}"] += 1
            if outcome.status == 200:
                self.seconds[kind].append(seconds)

    def count(self, what: str) -> None:
        """One request more that is so."""
        with self.lock:
            self.requests[what] += 1


class Soak:
    """The load, for `seconds`."""

    def __init__(self, url: str, pid: int, seconds: float) -> None:
        self.url, self.pid, self.seconds = url, pid, seconds
        self.book, self.tally = Book(), Tally()
        self.ended = threading.Event()
        self.kills: list[float] = []
        self.back_s: list[float] = []
        self.bursts = 0

    def run(self) -> None:
        """Learns every answer, then asks from all sides, then waits for all to come home."""
        self._learn()
        with ThreadPoolExecutor(CLIENTS + SLOW_CLIENTS + 2) as pool:
            done = [pool.submit(self._client, n) for n in range(CLIENTS)]
            done += [pool.submit(self._slow) for _ in range(SLOW_CLIENTS)]
            done += [pool.submit(self._bursts), pool.submit(self._kills)]
            try:
                time.sleep(self.seconds)
            finally:
                self.ended.set()
            for each in done:
                each.result()

    def _learn(self) -> None:
        with Askers(self) as asker:
            for number in range(DISTINCT):
                for kind in ("caption", "picture", "document", "chat"):
                    self._settle(kind, lambda k=kind, n=number: self._named(asker, k, n, random.Random(0)))  # type: ignore[misc]
        if twins := self.book.twins():
            raise OneFlowError(
                "the soak's requests", f"two get the same answer: {twins[0]}", "change their seeds"
            )

    def _client(self, number: int) -> None:
        rng = random.Random(number)
        with Askers(self) as asker:
            while not self.ended.is_set():
                (kind,) = rng.choices(list(SHARES), list(SHARES.values()))
                which = rng.randrange(DISTINCT)
                self._settle(kind, lambda k=kind, w=which: self._named(asker, k, w, rng))  # type: ignore[misc]

    def _named(self, asker: Asker, kind: str, number: int, rng: random.Random) -> Outcome:
        what, _, more = kind.partition(" ")
        if what == "stream":
            return asker.stream(more, number, previews=rng.choice((0, 4)))
        if kind in ("caption", "picture", "document"):
            return asker.whole(kind, number)
        others: Mapping[str, Callable[[], Outcome]] = {
            "chat": lambda: asker.chat(number),
            "pictures": lambda: asker.pictures(number),
            "leave stream": lambda: asker.leave_stream(number),
            "leave early": lambda: asker.leave_early(number, rng.uniform(0.02, 1.5)),
            "leave sending": lambda: asker.leave_sending(rng),
            "bad": lambda: asker.bad(rng),
            "look": lambda: asker.look(rng.choice(LOOKS)),
        }
        return others[kind]()

    def _settle(self, kind: str, attempt: Callable[[], Outcome]) -> None:
        """Asks until an answer comes that is not for now only."""
        begun = time.monotonic()
        self.tally.count("asked")
        while time.monotonic() - begun < ANSWERED_S:
            outcome = self._attempt(kind, attempt)
            if outcome.status not in (429, 503, -1):
                self.tally.count("answered")
                return
            time.sleep(min(outcome.retry_s, 2.0) * random.uniform(0.25, 1.0))
        self.tally.count("lost")

    def _attempt(self, kind: str, attempt: Callable[[], Outcome]) -> Outcome:
        sent = time.monotonic()
        outcome, seconds = once(attempt)
        wrong = outcome.wrong
        if outcome.status == 503 and not self._killed_lately(sent):
            wrong = "503 without a kill"
        elif outcome.status >= 500 and outcome.status != 503:
            wrong = "a failure of the server"
        self.tally.add(kind, outcome, seconds, wrong)
        return outcome

    def _killed_lately(self, sent: float) -> bool:
        return any(kill > sent - MEND_S for kill in self.kills)

    def _slow(self) -> None:
        with Askers(self) as asker:
            while not self.ended.is_set():
                outcome, seconds = once(lambda: asker.slow(self.ended.is_set))
                right = outcome.status in (0, 408, 429) or (
                    outcome.status == 503 and self._killed_lately(time.monotonic() - seconds)
                )
                self.tally.add("slow", outcome, seconds, "" if right else "should be 408")
                self.ended.wait(outcome.retry_s)

    def _bursts(self) -> None:
        def one(number: int) -> None:
            with Askers(self) as asker:
                gate.wait()
                self._attempt("burst", lambda: asker.whole("picture", number % DISTINCT))

        with ThreadPoolExecutor(BURST) as pool:
            while not self.ended.wait(BURST_EVERY_S):
                gate = threading.Barrier(BURST)
                list(pool.map(one, range(BURST)))
                self.bursts += 1

    def _kills(self) -> None:
        pause = self.seconds / (KILLS + 1)
        while not self.ended.wait(pause) and len(self.kills) < KILLS:
            replicas = [p for role, p in processes(self.pid) if role == "replica"]
            victim = max(replicas, key=psutil.Process.create_time)
            self.kills.append(time.monotonic())
            victim.send_signal(signal.SIGKILL)
            self._await_replica({p.pid for p in replicas})

    def _await_replica(self, before: set[int]) -> None:
        killed = time.monotonic()
        while not self.ended.wait(0.5):
            if {p.pid for role, p in processes(self.pid) if role == "replica"} - before:
                self.back_s.append(time.monotonic() - killed)
                return

    def result(self, watch: Watch, left: dict[str, float]) -> Result:
        """Everything told."""
        tally = self.tally
        attempts, wrong = tally.attempts.total(), tally.wrong.total()
        statuses: Counter[str] = Counter()
        by_kind: dict[str, dict[str, int]] = defaultdict(dict)
        for (kind, status), count in sorted(tally.attempts.items()):
            statuses[status] += count
            by_kind[kind][status] = count
        extra = {
            "minutes": self.seconds / 60,
            "requests": {what: tally.requests[what] for what in ("asked", "answered", "lost")},
            "wrong": dict(tally.wrong.most_common(20)),
            "swapped": sum(n for what, n in tally.wrong.items() if "swapped" in what),
            "attempts_by_status": dict(statuses),
            "attempts_by_kind": dict(by_kind),
            "seconds": {kind: _quantiles(held) for kind, held in sorted(tally.seconds.items())},
            "bursts": self.bursts,
            "kills": {"count": len(self.kills), "back_s": max(self.back_s, default=0.0)},
            "idle": left,
            "memory": watch.figures(warm_s=self.seconds / 6),
        }
        packages = ("torch", "ray", "fastapi", "uvicorn", "httpx2")
        right = [attempts - wrong]
        return Result("soak", "attempts", right, [attempts], packages, extra, watch.series())


class Askers:
    """An `Asker` for as long as a context is open."""

    def __init__(self, soak: Soak) -> None:
        self.asker = Asker(soak.url, soak.book, HANG_S)

    def __enter__(self) -> Asker:
        return self.asker

    def __exit__(self, *_: object) -> None:
        self.asker.close()


def idle(url: str, looks: int = 40) -> dict[str, float]:
    """When all have gone home: what the replicas still hold, at most, and documents that they cannot account for."""
    import httpx2

    time.sleep(10)
    held = {"running": 0.0, "queued": 0.0, "waiting": 0.0, "unaccounted": 0.0}
    with httpx2.Client(base_url=url, timeout=HANG_S) as http:
        for _ in range(looks):
            now = _meters(http.get("/metrics").text)
            documents = {e: now.get(f'oneflow_documents_total{{event="{e}"}}', 0) for e in EVENTS}
            counts = {
                "running": now["oneflow_running_documents"],
                "queued": now["oneflow_queue_documents"],
                "waiting": now["oneflow_waiting"],
            }
            # Those that were cancelled or failed while they waited never joined.
            ended = sum(documents[e] for e in EVENTS if e != "joined")
            counts["unaccounted"] = max(0.0, documents["joined"] - ended)
            held = {name: max(held[name], counts[name]) for name in held}
    return held


EVENTS = ("joined", "left", "cancelled", "failed")


def _meters(text: str) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def _quantiles(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.quantile(seconds, [0.5, 0.99]).tolist()
    return {"count": len(seconds), "p50": p50, "p99": p99, "most": max(seconds)}
