"""What tracking costs a step: the demo's network and data with everything on beside everything off, in turn.

On is `watch.detail=full` and a real MLflow server; off is basic and none. Both sides train on the same packs, each in a
process of its own that stands still while the other one steps. A run is the CPU time of all threads of an interval
between two logs, a step; so what else the machine does falls out, and deliveries that happen meanwhile do not. Samples
and held-out losses have their own cadence and are left out.

`overhead` is the median over pairs of intervals; as CPU time differs by some per cent from one to the next, `accounted`
tells it once more: the CPU time inside what tracking adds, by part.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from workflows.bench.child import Child
from workflows.bench.data_wait import write_documents
from workflows.bench.result import Result

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
    with tempfile.TemporaryDirectory(prefix="oneflow-bench-tracking-") as directory, ExitStack() as stack:
        folder = Path(directory)
        write_documents(folder / "shapes", DOCUMENTS)
        uri = stack.enter_context(_mlflow(folder / "stack"))
        pairs = max(3, runs * PAIRS)
        given = {"corpus": str(folder / "shapes"), "steps": EVERY * (pairs + 3)}
        sides = {
            name: stack.enter_context(
                Child(f"{__name__}:trained", {**given, "root": str(folder / name), "uri": to})
            )
            for name, to in (("on", uri), ("off", None))
        }
        told: dict[str, list[dict[str, Any]]] = {"on": [], "off": []}
        for number in range(pairs + 1):
            for name in ("on", "off") if number % 2 else ("off", "on"):
                told[name].append(sides[name].ask())
    return _result(told["on"][1:], told["off"][1:])


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


def trained(corpus: str, root: str, steps: int, uri: str | None) -> Callable[[], dict[str, Any]]:
    """Answers each time with what the next interval cost this process."""
    logged, go = threading.Semaphore(0), threading.Semaphore(0)
    spent: dict[str, float] = defaultdict(float)

    def pause(progress: object) -> None:
        logged.release()
        go.acquire()

    thread = threading.Thread(target=_train, args=(corpus, root, steps, uri, pause, spent), daemon=True)
    thread.start()
    logged.acquire()
    last = {"cpu": time.process_time(), "delivery": 0.0}

    def answer() -> dict[str, Any]:
        begun, before = time.perf_counter(), spent.copy()
        go.release()
        logged.acquire()
        cpu, delivery = time.process_time(), _delivery_s()
        parts = {name: value - before.get(name, 0.0) for name, value in spent.items()}
        if uri:
            parts["delivery"] = delivery - last["delivery"]
        found = {"cpu_s": cpu - last["cpu"], "wall_s": time.perf_counter() - begun, "parts": parts}
        last.update(cpu=cpu, delivery=delivery)
        return found

    return answer


def _train(
    corpus: str,
    root: str,
    steps: int,
    uri: str | None,
    pause: Callable[[object], None],
    spent: dict[str, float],
) -> None:
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    from workflows.config import load
    from workflows.training.loop import Hooks, Trainer
    from workflows.training.materials import gather
    from workflows.training.parallel import join_group
    from workflows.training.worker import open_tracker

    never, detail = 10**6, "full" if uri else "basic"
    watch = f"{{log_every: {EVERY}, heldout_every: {never}, sample_every: {never}, detail: {detail}}}"
    changes = [f"data.corpora=[{{url: {corpus}}}]", f"budget.steps={steps}", f"watch={watch}"]
    changes += ["budget.max_minutes=null", "data.holdout=0", f"checkpoint.url={root}"]
    changes += ["compute.workers=1", "data.cache_gb=0", f"checkpoint.every_steps={never}"]
    config = load("train", "shapes-nano", [*changes, f"tracking.uri={uri or 'null'}"])
    if uri:
        _clock(spent)
    materials, worker = gather(config), join_group(config.compute)
    tracker = open_tracker(config, materials, materials.run_key) if uri else None
    Trainer(config, materials, worker, root, tracker, Hooks(progress=pause)).run()


def _clock(spent: dict[str, float]) -> None:
    """Adds the CPU time of this thread inside each of ADDED to `spent`."""
    from importlib import import_module

    for target in ADDED:
        module, _, path = target.partition(":")
        owner, _, method = path.partition(".")
        held = getattr(import_module(module), owner)
        setattr(held, method, _clocked(getattr(held, method), path, spent))


def _clocked(act: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    def clocked(*args: Any, **options: Any) -> Any:
        begun = time.thread_time()
        found = act(*args, **options)
        spent[name] += time.thread_time() - begun
        return found

    return clocked


def _delivery_s() -> float:
    """CPU time of the thread that sends to MLflow."""
    for thread in threading.enumerate():
        if thread.name.startswith("outbox") and thread.ident:
            return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return 0.0
