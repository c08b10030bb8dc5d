"""Evaluation of many prompts end to end beside a bare loop of the pipeline over the same prompts.

Ours is `oneflow evaluate` without the start of its deployment: over HTTP to one replica of one core of Ray Serve,
outputs kept as they come, judged, and written. The bare loop holds the same model in a process of one thread and gives
it the prompts in batches, grouped by what is made; it keeps nothing and judges nothing. With --device cuda both have
the model on the GPU, and each still one core for the rest.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflows.bench.child import Child
from workflows.bench.result import Result
from workflows.evaluation.config import EvaluateConfig
from workflows.evaluation.run import run as evaluate
from workflows.evaluation.suites import shapes

MODEL, PROMPTS, BATCH = "embedded", 1000, 16
WARM = 2 * BATCH
"""Prompts that each side is given first."""


def run(
    runs: int, prompts: int = PROMPTS, model: str = MODEL, batch: int = BATCH, device: str = "cpu"
) -> Result:
    """`ratio` of items per second; the loop has a turn before and after each of ours, and counts by their mean."""
    config = config_of(prompts)
    total = len(shapes.items(config))
    given = {"prompts": prompts, "model": model, "batch": batch, "device": device}
    ours: list[float] = []
    peer: list[float] = []
    parts: dict[str, list[float]] = {"asking": [], "judging and writing": []}
    with (
        _served(model, gpus=int(device == "cuda")) as (ask, start_s),
        Child(f"{__name__}:bare", given) as child,
    ):
        before = child.ask()["seconds"]
        for _ in range(runs):
            whole, asking = ask(config)
            after = child.ask()["seconds"]
            ours.append(total / whole)
            peer.append(2 * total / (before + after))
            before = after
            parts["asking"].append(asking)
            parts["judging and writing"].append(whole - asking)
    extra = {"prompts": total, "batch": batch, "device": device, "deployment_start_s": start_s}
    return Result("evaluate", "items/s", ours, peer, ("torch", "ray"), extra, parts)


def config_of(prompts: int) -> EvaluateConfig:
    """A config of the suite `shapes` with about so many items in the preset's proportions, without its controls."""
    shares = {
        "t2i_single": 100,
        "t2i_multi": 60,
        "caption_single": 100,
        "caption_multi": 60,
        "vqa": 100,
        "story": 20,
    }
    whole = sum(shares.values())
    counts = {name: max(1, round(prompts * share / whole)) for name, share in shares.items()}
    return EvaluateConfig(items={**counts, "combinations": 0, "no_prompt": 0})


def bare(prompts: int, model: str, batch: int, device: str = "cpu") -> Callable[[], dict[str, Any]]:
    """The child's side: each question is one pass over all prompts."""
    from workflows.bench.bare import BareLoop

    loop = BareLoop(model, device)
    by_target = sorted(shapes.items(config_of(prompts)), key=lambda item: item.target)
    loop.seconds(by_target[:WARM], batch)

    def answer() -> dict[str, Any]:
        return {"seconds": loop.seconds(by_target, batch)}

    return answer


@contextmanager
def _served(
    model: str, gpus: int = 0
) -> Iterator[tuple[Callable[[EvaluateConfig], tuple[float, float]], float]]:
    """A deployment of one replica of one core, and GPUs; what it gives evaluates there: seconds, all and asking."""
    from workflows.serving.service import serving

    before = os.environ.pop("MLFLOW_TRACKING_URI", None)
    began = time.perf_counter()
    try:
        with (
            serving(model, replicas=1, cpus=1, gpus=gpus) as url,
            tempfile.TemporaryDirectory(prefix="of-evaluate-") as made,
        ):
            started_s = time.perf_counter() - began
            turns = iter(range(1_000_000))

            def ask(config: EvaluateConfig) -> tuple[float, float]:
                told: list[float] = []
                started = time.perf_counter()
                evaluate(
                    config,
                    model,
                    url=url,
                    out=Path(made) / str(next(turns)),
                    say=lambda line: told.append(time.perf_counter() - started),
                )
                return time.perf_counter() - started, told[-1]

            ask(config_of(WARM))
            yield ask, started_s
    finally:
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
