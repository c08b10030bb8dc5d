"""Builds that are killed at random moments, or whose store fails: is the corpus the same, and was it ever in part?

Victims are the driver, a worker (in encode: an encoder actor) and the S3 server, each killed with SIGKILL in each
stage; `proxy` builds through a proxy that does something to 5% of the requests. A kill counts where the stage was
going on. After each round all that is below the root is compared with the root of a build that nobody disturbed.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflows.bench.fault_proxy import FaultProxy
from workflows.bench.fault_site import STAGES, Driver, Site, objects, seconds
from workflows.bench.result import Result
from workflows.errors import OneFlowError, UsageError

KILLED = ("driver", "worker", "store")
VICTIMS = (*KILLED, "proxy")
SHARE = 0.05
AWAY_S = 10.0
"""Longest time for which a killed store is away."""
TRIES = 2
"""A stage that was over before its moment came is tried again in so many rounds for each kill that is wanted."""


@dataclass
class Tally:
    """What came of the rounds."""

    kills: dict[str, Counter[str]] = field(default_factory=dict)
    builds: int = 0
    restarts: int = 0
    missed: int = 0
    differing: list[str] = field(default_factory=list)
    half_written: list[str] = field(default_factory=list)
    looks: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    seconds: list[float] = field(default_factory=list)

    def count(self, victim: str, stage: str) -> int:
        """Kills so far."""
        return self.kills.get(victim, Counter())[stage]


def run(runs: int, only: Sequence[str] = (), seed: int = 0) -> Result:
    """`runs` kills of each victim in each stage; `only` names victims or victim/stage, `ratio` is what a disturbed
    build takes against an undisturbed one.

    Raises:
        UsageError: `only` names what is none.
        OneFlowError: a corpus differed, or was readable in part.
    """
    wanted = _wanted(only)
    with tempfile.TemporaryDirectory(prefix="oneflow-faults-") as folder:
        site = Site(Path(folder))
        try:
            site.start()
            site.write_sources()
            tally, undisturbed = _rounds(site, wanted, runs, random.Random(seed))
        finally:
            site.stop()
    found = {
        "kills": {victim: dict(stages) for victim, stages in tally.kills.items()},
        "builds": tally.builds,
        "restarts": tally.restarts,
        "missed": tally.missed,
        "mismatches": len(tally.differing),
        "half_written": len(tally.half_written),
        "verified_meanwhile": tally.looks,
        "retries": dict(tally.retries),
        "proxy_requests": tally.requests,
        "proxy_faults": dict(tally.faults),
    }
    if tally.differing or tally.half_written:
        told = "; ".join([*tally.differing, *tally.half_written][:5])
        raise OneFlowError(
            "benchmark faults", f"{told} {found}", "this is a bug of the corpus jobs: report it"
        )
    return Result("faults", "s", tally.seconds or [undisturbed], [undisturbed], ("ray", "s3fs"), found)


def _wanted(only: Sequence[str]) -> list[tuple[str, str]]:
    every = [(victim, stage) for victim in KILLED for stage in STAGES] + [("proxy", "")]
    chosen = [pair for pair in every if not only or pair[0] in only or "/".join(pair) in only]
    known = {*VICTIMS, *("/".join(pair) for pair in every)}
    if unknown := [name for name in only if name not in known]:
        raise UsageError(
            f"--only {unknown[0]}", "there is no such victim", f"known: {', '.join(sorted(known))}"
        )
    return chosen


def _rounds(
    site: Site, wanted: Sequence[tuple[str, str]], runs: int, rng: random.Random
) -> tuple[Tally, float]:
    begin = time.monotonic()
    first = site.driver("whole")
    reference = first.report()
    undisturbed, tally = seconds(begin), Tally(builds=1)
    meant = objects(site, "whole")
    for victim in dict.fromkeys(victim for victim, _ in wanted):
        stages = [stage for other, stage in wanted if other == victim]
        for number in range(runs * TRIES):
            left = [stage for stage in stages if tally.count(victim, stage) < runs]
            if not left:
                break
            name = f"{victim}-{number}"
            begin = time.monotonic()
            with site.watched(name) as seen:
                report = _round(site, tally, victim, left, name, first.lasts, rng)
            tally.seconds.append(seconds(begin))
            _compare(tally, name, report, reference, meant, objects(site, name))
            tally.half_written += [f"{name}: {told}" for told in seen["half"]]
            tally.looks += seen["whole"]
            wrong = [*tally.differing, *tally.half_written]
            told = f"{tally.seconds[-1]:.0f} s, kills {tally.kills}, {len(wrong)} wrong {wrong[:2] or ''}"
            print(f"faults: {name}: {told}", file=sys.stderr, flush=True)
    return tally, undisturbed


def _round(
    site: Site,
    tally: Tally,
    victim: str,
    stages: Sequence[str],
    name: str,
    lasts: dict[str, float],
    rng: random.Random,
) -> dict[str, Any]:
    """One build from nothing, with a kill in each of `stages`; the report of the driver that ended it."""
    if victim == "proxy":
        tally.kills.setdefault("proxy", Counter())[""] += 1
        with FaultProxy(site.environment["AWS_ENDPOINT_URL"], SHARE, rng.randrange(1 << 30)) as proxy:
            # A Ray of the driver's own: the workers of the long-lived one know the store's own address.
            report = site.driver(name, AWS_ENDPOINT_URL=proxy.url, RAY_ADDRESS="").report()
            tally.faults.update(proxy.faults)
            tally.requests += proxy.requests
        return _done(tally, report)
    driver = site.driver(name)
    for stage in stages:
        if not driver.reaches(stage):
            tally.missed += 1
            continue
        if victim == "worker":
            site.await_worker(stage, lasts.get(stage, 0.0))
        time.sleep(rng.uniform(0, lasts.get(stage, 0.0) / (2 if victim == "worker" else 1)))
        if driver.stage != stage or not _kill(site, driver, victim, stage, rng):
            tally.missed += 1
            continue
        tally.kills.setdefault(victim, Counter())[stage] += 1
        if victim == "driver":
            tally.restarts += 1
            driver = site.driver(name)
    try:
        return _done(tally, driver.report())
    except OneFlowError:
        # What a user does: the same command again, which has to succeed.
        tally.restarts += 1
        return _done(tally, site.driver(name).report())


def _done(tally: Tally, report: dict[str, Any]) -> dict[str, Any]:
    tally.builds += 1
    tally.retries.update(report["retries"])
    return report


def _kill(site: Site, driver: Driver, victim: str, stage: str, rng: random.Random) -> bool:
    if victim == "worker":
        return site.kill_worker(stage, rng)
    driver.kill() if victim == "driver" else site.kill_store(rng.uniform(0, AWAY_S))
    return True


def _compare(
    tally: Tally,
    name: str,
    report: dict[str, Any],
    reference: dict[str, Any],
    meant: dict[str, bytes],
    found: dict[str, bytes],
) -> None:
    if report["version"] != reference["version"]:
        tally.differing.append(f"{name}: version {report['version']}, not {reference['version']}")
    for path in sorted(meant.keys() | found.keys()):
        if meant.get(path) != found.get(path):
            what = "missing" if path not in found else "additional" if path not in meant else "other bytes"
            tally.differing.append(f"{name}: {path}: {what}")
