"""Training that is killed at random moments: does it end with the same weights, and was a committed step ever lost?

Victims are a `worker`, the S3 `store` and `mlflow` (both come back after up to `AWAY_S`), the `driver` (and the same
command again), `sigterm` to the driver (likewise), and a `node` (another one comes), each killed with SIGKILL at a
random moment of a run of its own that trains on two nodes. A kill counts where training was going on.
"""

import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflows.bench.result import Result
from workflows.bench.train_site import LOG_EVERY, STACK, TrainDriver, TrainSite
from workflows.errors import OneFlowError, UsageError
from workflows.stack import connect, down, up

VICTIMS = ("worker", "store", "mlflow", "driver", "sigterm", "node")
AWAY_S = 25.0
STEPS = 300
TRIES = 2
"""A run that was over before its moment came is followed by another one, so many times for each kill wanted."""


@dataclass
class Tally:
    """What came of the runs."""

    kills: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    restarts: int = 0
    attempts: int = 0
    wrong: list[str] = field(default_factory=list)
    """What differs from the undisturbed run."""
    lost_steps: list[str] = field(default_factory=list)
    """Committed steps that were trained again."""
    tracking: list[str] = field(default_factory=list)
    """Metrics whose history has a gap, a step twice, or steps out of order."""
    goodput: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def run(runs: int, only: Sequence[str] = (), seed: int = 0) -> Result:
    """`runs` kills of each victim; `ratio` is what a disturbed run takes against the undisturbed one.

    Raises:
        UsageError: `only` names what is none.
        OneFlowError: weights differed, a committed step was lost, or metrics are not what they should be.
    """
    if unknown := [name for name in only if name not in VICTIMS]:
        raise UsageError(f"--only {unknown[0]}", "there is no such victim", f"known: {', '.join(VICTIMS)}")
    with tempfile.TemporaryDirectory(prefix="oneflow-faults-") as folder:
        state_dir, before = Path(folder) / "stack", dict(os.environ)
        try:
            up(STACK, state_dir)
            connect(state_dir)
            site = TrainSite(state_dir, seed)
            try:
                site.start()
                tally, undisturbed = _rounds(site, [v for v in VICTIMS if not only or v in only], runs, seed)
            finally:
                site.stop()
        finally:
            down(state_dir, purge=True)
            os.environ.clear()
            os.environ.update(before)
    found = {
        "kills": dict(tally.kills),
        "missed": tally.missed,
        "restarts": tally.restarts,
        "attempts": tally.attempts,
        "mismatches": len(tally.wrong),
        "lost_committed_steps": len(tally.lost_steps),
        "metric_faults": len(tally.tracking),
        "goodput": tally.goodput,
    }
    if told := [*tally.wrong, *tally.lost_steps, *tally.tracking]:
        mend = "this is a bug of the training: report it"
        raise OneFlowError("benchmark train-faults", f"{'; '.join(told[:5])} {found}", mend)
    return Result("train-faults", "s", tally.seconds or [undisturbed], [undisturbed], ("ray", "torch"), found)


def _rounds(site: TrainSite, victims: Sequence[str], runs: int, seed: int) -> tuple[Tally, float]:
    rng, tally = random.Random(seed), Tally()
    begin = time.monotonic()
    reference = site.driver("undisturbed", budget__steps=STEPS).report()
    undisturbed = time.monotonic() - begin
    trains_s = reference["elapsed_s"]
    for victim in victims:
        for number in range(runs * TRIES):
            if tally.kills[victim] == runs:
                break
            name, begin = f"{victim}-{number}", time.monotonic()
            report = _disturbed(site, tally, victim, name, rng.uniform(0, trains_s), rng)
            tally.seconds.append(time.monotonic() - begin)
            tally.goodput.append(report["goodput"]["share"])
            _compare(site, tally, name)
            said = f"{tally.seconds[-1]:.0f} s, kills {dict(tally.kills)}, {len(tally.wrong)} differ"
            print(f"train-faults: {name}: {said}", file=sys.stderr, flush=True)
    return tally, undisturbed


def _disturbed(
    site: TrainSite, tally: Tally, victim: str, name: str, moment_s: float, rng: random.Random
) -> dict[str, Any]:
    """One run with one kill, `moment_s` after training began; the report of the driver that ended it."""
    driver = site.driver(name, budget__steps=STEPS)
    site.wait("training", lambda: bool(site.attempts(name)), driver)
    time.sleep(moment_s)
    kept = site.newest(name)
    if driver.process.poll() is not None or kept == STEPS:
        tally.missed += 1
    else:
        tally.kills[victim] += 1
        driver = _kill(site, tally, victim, name, driver, rng)
    try:
        report = driver.report()
    except OneFlowError as error:
        # What a user does: the same command again, which has to succeed.
        print(f"train-faults: {name}: {error}", file=sys.stderr, flush=True)
        tally.restarts += 1
        report = site.driver(name, budget__steps=STEPS).report()
    attempts = site.attempts(name)
    tally.attempts += len(attempts)
    lost = [a for a in attempts[1:] if a["start_step"] < kept]
    tally.lost_steps += [f"{name}: step {kept} was committed, {a} began before" for a in lost]
    return report


def _kill(
    site: TrainSite, tally: Tally, victim: str, name: str, driver: TrainDriver, rng: random.Random
) -> TrainDriver:
    """The driver that goes on after the kill."""
    if victim == "worker":
        if not site.kill_worker():
            tally.kills[victim] -= 1
            tally.missed += 1
    elif victim == "node":
        site.kill_node()
        site.add_node()
    elif victim in ("store", "mlflow"):
        site.kill_service("s3" if victim == "store" else victim)
        time.sleep(rng.uniform(0, AWAY_S))
        site.start_services()
    else:
        tally.restarts += 1
        driver.kill() if victim == "driver" else driver.terminate()
        return site.driver(name, budget__steps=STEPS)
    return driver


def _compare(site: TrainSite, tally: Tally, name: str) -> None:
    """The last checkpoint with that of the undisturbed run, and what MLflow holds with what was to be logged."""
    if site.digests(name, STEPS) != site.digests("undisturbed", STEPS):
        tally.wrong.append(f"{name}: other bytes in the checkpoint of step {STEPS}")
    _, tracked = site.tracked(name)
    if tracked.info.status != "FINISHED":
        tally.tracking.append(f"{name}: MLflow says {tracked.info.status}")
    for metric in tracked.data.metrics:
        every = 100 if metric.startswith("heldout/") else LOG_EVERY
        steps = site.history(name, metric)
        if steps != list(range(every, STEPS + 1, every)):
            tally.tracking.append(f"{name}: {metric} at {steps}")
