"""Tokens per second of our training loop beside a bare PyTorch loop over the same network, in turns.

Ours has Ray Train, FSDP on one worker, the loader over real shards and tracking in a real MLflow server; the bare one
has its packs in memory and nothing else. Both have one thread for arithmetic. Start-up, evaluation and checkpoints are
left out. `scaling` is what two workers of one thread each do to one, beside what two bare processes at once do to one
(`scaling_limit`), which is what the machine gives. `mfu` is by the rate of a large matrix product in the same run.

With a GPU: the loop alone, without Ray and MLflow, training 1b on pairs of 256 pixels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from workflows.bench.child import ROOT, Child
from workflows.bench.result import Result
from workflows.bench.train_loop_sides import LOG_EVERY, Turn, alone, config_of, take
from workflows.errors import OneFlowError
from workflows.training.config import TrainConfig

STEPS, DOCUMENTS = 4 * LOG_EVERY, 4000
GPU_STEPS, GPU_SKIPPED = 40, 10
Sides = Mapping[str, Callable[[int], Turn]]


def run(runs: int, device: str = "cpu") -> Result:
    """`ratio` of tokens per second; on a GPU MFU, jitter and data wait."""
    return measure(runs) if device == "cpu" else _gpu()


def measure(runs: int, steps: int = STEPS, changes: Sequence[str] = ()) -> Result:
    """Turns of `steps` (a multiple of LOG_EVERY) after one to warm up; `changes` are of the run's config."""
    with (
        tempfile.TemporaryDirectory(prefix="of-loop-", dir="/tmp") as made,
        _sides(Path(made), runs, steps, changes) as (sides, rates),
    ):
        turns: dict[str, list[Turn]] = {name: [] for name in sides}
        for number in range(runs + 1):
            for name, side in sides.items():
                turns[name].append(side(number))
    return _result({name: held[1:] for name, held in turns.items()}, rates)


def _result(turns: Mapping[str, list[Turn]], rates: Mapping[str, float]) -> Result:
    speeds = {name: [turn.tokens / turn.seconds for turn in held] for name, held in turns.items()}
    costs = {name: median(t.cpu_seconds / t.tokens for t in held) for name, held in turns.items()}
    ours, peer = speeds.pop("ours"), speeds.pop("bare")
    pairs = [a / b for a, b in zip(ours, peer, strict=True)]
    extra = {
        "ratio_of_pairs": median(pairs),
        "cpu_ratio": costs["bare"] / costs["ours"],
        "mfu": {
            "ours": median(ours) * rates["flops"] / rates["product"],
            "bare": median(peer) * rates["flops"] / rates["product"],
        },
        "scaling": median(a / b for a, b in zip(speeds["ours on 2"], ours, strict=True)),
        "scaling_limit": median(a / b for a, b in zip(speeds["two bare"], peer, strict=True)),
    }
    return Result("train-loop", "tokens/s", ours, peer, ("torch", "ray", "mlflow"), extra, speeds)


@contextmanager
def _sides(
    root: Path, runs: int, steps: int, changes: Sequence[str]
) -> Iterator[tuple[Sides, Mapping[str, float]]]:
    """All sides, warm, and FLOPs a token with the rate of a product."""
    from workflows.bench.data_wait import write_documents

    corpus = str(root / "corpus")
    write_documents(Path(corpus), DOCUMENTS)
    with ExitStack() as stack:
        os.environ["OMP_NUM_THREADS"] = "1"
        uri = stack.enter_context(_services(root / "stack"))
        arguments = {"corpus": corpus, "steps": steps, "changes": list(changes)}
        twins = [
            stack.enter_context(Child("workflows.bench.train_loop_sides:bare", arguments)) for _ in range(2)
        ]
        configs = {
            workers: config_of(corpus, str(root / "runs"), workers, (runs + 1) * steps, uri, changes)
            for workers in (1, 2)
        }
        loops = {n: stack.enter_context(_ours(root / f"turns-{n}", c, steps)) for n, c in configs.items()}
        pool = stack.enter_context(ThreadPoolExecutor(2))

        def both(_: int) -> Turn:
            told = list(pool.map(lambda twin: Turn(**twin.ask(asked="turn")), twins))
            rate = sum(turn.tokens / turn.seconds for turn in told)
            return Turn(rate, 1.0, rate * told[0].cpu_seconds / told[0].tokens)

        yield (
            {
                "ours": loops[1],
                "bare": lambda _: Turn(**twins[0].ask(asked="turn")),
                "ours on 2": loops[2],
                "two bare": both,
            },
            twins[0].ask(asked="rates"),
        )


@contextmanager
def _services(directory: Path) -> Iterator[str]:
    """A Ray (RAY_ADDRESS) and an MLflow server of the benchmark's own; yields the server's URI."""
    from workflows.stack import StackConfig, connect, down, up

    before = dict(os.environ)
    try:
        up(StackConfig(ray={"num_cpus": 3, "object_store_mb": 200}), directory)
        connect(directory)
        yield os.environ["MLFLOW_TRACKING_URI"]
    finally:
        down(directory, purge=True)
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _ours(place: Path, config: TrainConfig, steps: int) -> Iterator[Callable[[int], Turn]]:
    """A run of ours that takes turns of `steps`, the first one at once; it is given up when the context ends early."""
    place.mkdir()
    given = {
        "config": config.model_dump(mode="json"),
        "key": config.name,
        "place": str(place),
        "steps": steps,
    }
    with (place / "said").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "workflows.bench.train_loop_sides", json.dumps(given)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )

        def alive() -> None:
            if process.poll() is not None:
                said.seek(0)
                words = " ".join(said.read().split())[-500:]
                raise OneFlowError(f"our loop, {config.name}", words, "see whether Ray starts here")

        try:
            take(place, 0, alive)
            yield lambda number: take(place, number, alive) if number else Turn(1.0, 1.0, 1.0)
            process.wait(300)
        finally:
            process.kill()
            process.wait()


def _gpu() -> Result:
    """The loop on this process's GPU; `ratio` is MFU where the device is known."""
    from workflows.bench.loader_corpus import Kind, write_corpus
    from workflows.config import load

    with tempfile.TemporaryDirectory(prefix="of-loop-") as made:
        corpus, runs = f"{made}/corpus", f"{made}/runs"
        write_corpus(Path(corpus), "pairs", Kind((16, 32, 32), None, 2000, 1))
        places = [f"data.corpora=[{{url: {corpus}}}]", f"checkpoint.url={runs}"]
        told = alone(load("train", "shapes-nano", [*GPU_CHANGES, *places]), f"{runs}/bench", GPU_SKIPPED)
    rates, sheet = told.pop("rates"), told.pop("sheet")
    return Result("train-loop", "FLOP/s", rates, [sheet or median(rates)], ("torch",), told)


GPU_CHANGES = [
    "model={preset: 1b}",
    "objective={mixture: {concurrent: 1.0, prompt_dropout: 0.0}}",
    "optimiser={kind: adamw, lr: 1.0e-4}",
    "data.lanes=2",
    "data.tokens=8192",
    "data.holdout=0",
    f"budget={{steps: {GPU_STEPS}}}",
    "watch={log_every: 10, heldout_every: 1000000, sample_every: 1000000, prompts: []}",
    "checkpoint.every_steps=1000000",
    "compute={workers: 1, device: cuda, precision: bf16, compile: true}",
]
"""The demo's preset turned into 1b on a GPU."""
