"""What tracking costs a step: the demo's network and data, with everything on and with everything off, in turn.

On is `watch.detail=full` and a real MLflow server; off is neither. One process trains and is switched at every log, so
that both sides have the same memory and machine: two processes differ by more than what is measured. A run is the CPU
time of all threads between two logs, a step, deliveries to MLflow included. Samples and held-out losses have their own
cadence and are left out.

`overhead` is the median over pairs of neighbours; as CPU time differs by some per cent from one to the next, it is
told once more as `accounted`: the CPU time inside what tracking adds, by part.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from workflows.bench.child import Child
from workflows.bench.data_wait import write_documents
from workflows.bench.result import Result

if TYPE_CHECKING:
    from workflows.tracking import Tracker

DOCUMENTS = 2000
PAIRS = 4
"""Pairs of intervals in a run."""
EVERY = 20
"""Steps of an interval: watch.log_every of the preset."""
ADDED = (
    "workflows.training.detail:Detail.add",
    "workflows.training.detail:Detail.step",
    "workflows.training.detail:Detail.read",
    "workflows.tracking:Tracker.metrics",
)
"""What runs on the training thread."""


def run(runs: int) -> Result:
    """`overhead` and what it consists of, as shares of a step's CPU time without."""
    with tempfile.TemporaryDirectory(prefix="oneflow-bench-tracking-") as directory:
        folder = Path(directory)
        write_documents(folder / "shapes", DOCUMENTS)
        with _mlflow(folder / "stack") as uri:
            given = {"corpus": str(folder / "shapes"), "root": str(folder / "run"), "uri": uri}
            with Child(f"{__name__}:trained", given) as child:
                told = child.ask(pairs=max(3, runs * PAIRS))["intervals"]
    return _result(told[0::2], told[1::2])


def _result(on: list[dict[str, Any]], off: list[dict[str, Any]]) -> Result:
    ours, peer = ([interval["cpu_s"] / EVERY for interval in side] for side in (on, off))
    shares = [a / b - 1 for a, b in zip(ours, peer, strict=True)]
    parts = {
        name: median(interval["parts"].get(name, 0.0) for interval in on) / EVERY / median(peer)
        for name in on[0]["parts"]
    }
    low, _, high = quantiles(shares, n=4)
    extra = {
        "overhead": median(shares),
        "overhead_quartiles": {"low": low, "high": high},
        "accounted": sum(parts.values()),
        "parts": parts,
        "log_every": EVERY,
        "wall_s": {
            name: median(i["wall_s"] / EVERY for i in side) for name, side in (("on", on), ("off", off))
        },
    }
    return Result("tracking", "CPU s a step", ours, peer, ("torch", "mlflow"), extra)


@contextmanager
def _mlflow(directory: Path) -> Iterator[str]:
    """A server of its own, with the store that it keeps artifacts in."""
    from workflows.stack import StackConfig, connect, down, up
    from workflows.stack.config import RayConfig

    up(StackConfig(ray=RayConfig(enabled=False), min_free_mb=0), directory)
    try:
        yield connect(directory)["MLFLOW_TRACKING_URI"]
    finally:
        down(directory, purge=True)


def trained(corpus: str, root: str, uri: str) -> Callable[[int], dict[str, Any]]:
    """Answers with what each interval cost this process, on and off in turn."""

    def answer(pairs: int) -> dict[str, Any]:
        switch = Switch()
        for target in ADDED:
            switch.put_before(target)
        _train(corpus, root, uri, switch, 2 * pairs + 2)
        return {"intervals": switch.intervals[1 : 2 * pairs + 1]}

    return answer


@dataclass
class Switch:
    """Lets what tracking adds run in every other interval, and keeps what each interval took."""

    on: bool = False
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    intervals: list[dict[str, Any]] = field(default_factory=list)
    began: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """CPU, wall and delivery seconds at the last log."""

    def put_before(self, target: str) -> None:
        """`target` ("module:Class.method") does nothing when off, and its CPU time is counted when on."""
        from importlib import import_module

        module, _, path = target.partition(":")
        owner, _, method = path.partition(".")
        held = getattr(import_module(module), owner)
        setattr(held, method, self.switched(getattr(held, method), path))

    def switched(self, act: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`act`, or what gives an empty mapping."""

        def switched(*args: Any, **options: Any) -> Any:
            if not self.on:
                return {}
            begun = time.thread_time()
            found = act(*args, **options)
            self.spent[name] += time.thread_time() - begun
            return found

        return switched

    def turn(self, tracker: Tracker) -> None:
        """An interval is over; what it logged is waited for."""
        while tracker.unsent():
            time.sleep(0.01)
        now = time.process_time(), time.perf_counter(), _delivery_s()
        cpu, wall, delivery = (a - b for a, b in zip(now, self.began, strict=True))
        parts = {**self.spent, "delivery": delivery} if self.on else {}
        self.intervals.append({"cpu_s": cpu, "wall_s": wall, "parts": parts})
        self.spent.clear()
        self.on, self.began = not self.on, now


def _train(corpus: str, root: str, uri: str, switch: Switch, intervals: int) -> None:
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    from workflows.config import load
    from workflows.training.loop import Hooks, Trainer
    from workflows.training.materials import gather
    from workflows.training.parallel import join_group
    from workflows.training.worker import open_tracker

    never = 10**6
    watch = f"{{log_every: {EVERY}, heldout_every: {never}, sample_every: {never}}}"
    changes = [f"data.corpora=[{{url: {corpus}}}]", f"budget.steps={EVERY * intervals}", f"watch={watch}"]
    changes += ["budget.max_minutes=null", "data.holdout=0", f"checkpoint.url={root}"]
    changes += ["compute.workers=1", f"checkpoint.every_steps={never}", f"tracking.uri={uri}"]
    config = load("train", "shapes-nano", changes)
    materials, worker = gather(config), join_group(config.compute)
    tracker = open_tracker(config, materials, materials.run_key)
    assert tracker
    Trainer(config, materials, worker, root, tracker, Hooks(progress=lambda _: switch.turn(tracker))).run()
    tracker.close()


def _delivery_s() -> float:
    """CPU time of the thread that sends to MLflow."""
    for thread in threading.enumerate():
        if thread.name.startswith("outbox") and thread.ident:
            return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return 0.0
