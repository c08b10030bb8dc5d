"""How long training waits for data: the demo's network, data and settings, its two workers, for a few steps.

Documents are those that `oneflow corpus synth` draws, with noise for latents and features; decoding, corruption and
packing run ahead in a thread, so what is left is what the trainer waits for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from oneflow_core.data.manifest import Manifest
from oneflow_core.data.shard import Sample
from workflows.bench.child import Child
from workflows.bench.documents import FEATURES, LATENT, MIXTURES, draw
from workflows.bench.loader_corpus import Kind, store_corpus

WORKERS = 2


def measure(directory: Path, documents: int, steps: int) -> dict[str, float]:
    """Share of the time of the steps after the first ones that the workers waited for data, and steps a second."""
    write_documents(directory / "shapes", documents)
    with ExitStack() as stack, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        arguments = {"corpus": str(directory / "shapes"), "root": str(directory / "run"), "port": port}
        workers = [
            stack.enter_context(Child("workflows.bench.data_wait:trained", {**arguments, "rank": rank}))
            for rank in range(WORKERS)
        ]
        with ThreadPoolExecutor(WORKERS) as pool:
            told = list(pool.map(lambda worker: worker.ask(steps=steps), workers))
    return {name: float(np.mean([answer[name] for answer in told])) for name in told[0]}


def write_documents(directory: Path, count: int) -> Manifest:
    """A corpus of the demo's mixture in four shards."""
    rng, weights = np.random.default_rng(0), MIXTURES["shapes"]
    shares = np.array(list(weights.values())) / sum(weights.values())
    kinds = rng.choice(list(weights), count, p=shares)
    samples = [draw(str(kind), number, 0) for number, kind in enumerate(kinds)]
    parts: list[list[Sample]] = [samples[number::4] for number in range(4)]
    return store_corpus(directory, "shapes", Kind(LATENT, FEATURES, 0, 0), parts)


def trained(corpus: str, root: str, port: int, rank: int) -> Callable[..., dict[str, float]]:
    """Answers with what one worker saw over `steps` steps."""
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{WORKERS}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}

    def answer(steps: int) -> dict[str, float]:
        from workflows.config import load
        from workflows.training.loop import Trainer
        from workflows.training.materials import gather
        from workflows.training.parallel import join_group

        never = 10**6
        watch = (
            f"{{log_every: {max(1, steps // 2)}, heldout_every: {never}, sample_every: {never}, prompts: []}}"
        )
        changes = [f"data.corpora=[{{url: {corpus}}}]", f"budget.steps={steps}", f"watch={watch}"]
        config = load("train", "shapes-nano", [*changes, "data.holdout=0", f"checkpoint.url={root}"])
        trainer = Trainer(config, gather(config), join_group(config.compute), root)
        metrics = trainer.run().metrics
        return {"data_wait": metrics["speed/data_wait"], "steps_per_s": 1 / metrics["speed/step_s"]}

    return answer
