"""Resuming at 90% of an epoch: the next samples, the seconds to the first of them, and the size of the state.

The stream of two workers is cut at a state and goes on; one, two and four workers that load the state must give the
same packs of the same documents, step by step. Then the same position is opened in corpora of up to a million shards,
of which only those exist that the first steps read: seconds count from the manifest's URL to the first batch.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from oneflow_core.data.lanes import LaneOrder
from oneflow_core.data.loader import Corpus, Loader, LoaderConfig
from oneflow_core.data.manifest import Manifest
from oneflow_core.data.packer import LanePosition
from oneflow_core.data.reader import index_url
from oneflow_core.data.shard import Sample
from oneflow_core.data.state import STATE_SCHEMA, join_states, state_of
from workflows.bench.child import Child
from workflows.bench.loader_corpus import Kind, write_corpus
from workflows.bench.result import Result
from workflows.bench.synthetic import write_manifest
from workflows.errors import OneFlowError

DOCUMENTS = Kind((4, 2, 2), None, 1000, 24)
"""The shards of the corpus that is read for real: documents of no weight, as what is measured is finding them."""
SHARDS = (1_000, 10_000, 100_000, 1_000_000)
CONFIG = LoaderConfig(tokens=2048, lanes=64, seed=1)
STEPS, IMAGE_TOKENS = 6, 256
Start = tuple[str, dict[str, Any]]
"""Where a corpus lies, and a state."""
Ids = list[list[list[str]]]
"""Documents of each pack of each step, packs in the order of lanes."""


@dataclass(frozen=True, slots=True)
class Read:
    """A document as it is read: its id, and the tokens it takes: its words, and its image's patches at 256 pixels."""

    doc_id: str
    length: int


def run(runs: int) -> Result:
    """Seconds to the first batch by number of shards, `worst_s` of all runs; `identical` is true, or it fails."""
    return measure(runs, DOCUMENTS, SHARDS, CONFIG)


def measure(runs: int, kind: Kind, shards: Sequence[int], config: LoaderConfig) -> Result:
    """Ours is seconds in the largest corpus, the peer's the smallest: flat is a ratio of 1."""
    with tempfile.TemporaryDirectory(prefix="oneflow-bench-") as made:
        root = Path(made)
        manifest = write_corpus(root / "real", "real", kind)
        state, identical = _same_for_any_workers(manifest, config)
        starts: dict[str, Start] = {"real": (manifest.base, state)}
        starts |= {f"{count}": _thinned(root / f"{count}", count, manifest, config) for count in shards}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in starts}
        for _ in range(runs):
            for name, start in starts.items():
                arguments = {"warm": starts["real"], "start": start, "lanes": config.lanes}
                with Child("workflows.bench.resume:resumed", arguments) as child:
                    found[name].append(child.ask())
    seconds = {name: [run["seconds"] for run in held] for name, held in found.items()}
    extra = {
        "identical": identical,
        "worst_s": max(max(held) for held in seconds.values()),
        "median_s": {name: median(held) for name, held in seconds.items()},
        "cpu_s": {name: median(run["cpu"] for run in held) for name, held in found.items()},
        "state_bytes": {name: len(json.dumps(at)) for name, (_, at) in starts.items()},
    }
    ours, peer = seconds[f"{max(shards)}"], seconds[f"{min(shards)}"]
    return Result("resume", "s to the first batch", ours, peer, ("numpy", "pyarrow"), extra, seconds)


def resumed(warm: Start, start: Start, lanes: int) -> Callable[[], dict[str, float]]:
    """Answers once, in a process that has resumed another corpus before: seconds from the URL to the first batch."""
    config = replace(CONFIG, lanes=lanes)

    def first_batch(url: str, state: dict[str, Any]) -> None:
        loader = _loader(Manifest.load(url), config, 0, 1)
        loader.load_state_dict(state)
        assert len(next(iter(loader))) == lanes

    def answer() -> dict[str, float]:
        begun, used = time.perf_counter(), time.process_time()
        first_batch(*start)
        return {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - used}

    first_batch(*warm)
    return answer


def _same_for_any_workers(manifest: Manifest, config: LoaderConfig) -> tuple[dict[str, Any], bool]:
    """The state at 90% of an epoch of two workers; whether one, two and four go on from it as they do."""
    first = [_loader(manifest, config, rank, 2) for rank in range(2)]
    streams = [iter(loader) for loader in first]
    while first[0].epochs()["real"] < 0.9:
        for stream in streams:
            next(stream)
    state = json.loads(json.dumps(join_states([loader.state_dict() for loader in first])))
    wanted = _merged([list(islice(stream, STEPS)) for stream in streams])
    for world_size in (1, 2, 4):
        workers = [_loader(manifest, config, rank, world_size) for rank in range(world_size)]
        for worker in workers:
            worker.load_state_dict(state)
        if _merged([list(islice(worker, STEPS)) for worker in workers]) != wanted:
            raise OneFlowError(
                "benchmark resume", f"{world_size} workers go on otherwise", "the order is broken"
            )
    return state, True


def _merged(parts: Sequence[Ids]) -> Ids:
    """Packs of every step in the order of lanes, from those of the workers."""
    return [
        [pack for packs in zip(*(part[step] for part in parts), strict=True) for pack in packs]
        for step in range(STEPS)
    ]


def _loader(manifest: Manifest, config: LoaderConfig, rank: int, world_size: int) -> Loader[Read, list[str]]:
    return Loader([Corpus(manifest)], config, rank=rank, world_size=world_size, prepare=_read, collate=_ids)


def _read(sample: Sample, rng: np.random.Generator) -> Read:
    return Read(sample.document.doc_id, len(sample.document.texts[0].text.split()) + IMAGE_TOKENS)


def _ids(examples: list[Read]) -> list[str]:
    return [example.doc_id for example in examples]


def _thinned(root: Path, count: int, real: Manifest, config: LoaderConfig) -> tuple[str, dict[str, Any]]:
    """The URL of a corpus of `count` shards, of which those exist that are read at 90% of an epoch; a state there.

    Every shard is the first one of the real corpus under another name.
    """
    entry = real.shards[0]
    manifest = write_manifest(root, "real", count, entry)
    order = LaneOrder(
        manifest.shards.column("samples"),
        lanes=config.lanes,
        seed=f"{config.seed}/real",
        window=config.window,
    )
    positions, needed = {}, set[int]()
    for lane in range(config.lanes):
        consumed = int(order.size(lane) * 0.9)
        positions[lane] = LanePosition({"real": consumed})
        for offset in range(4 * CONFIG.tokens // 8):
            needed.add(order.locate(lane, consumed + offset).shard)
    for number in needed:
        name = manifest.shards[number].name
        os.link(f"{real.base}/{entry.name}", root / name)
        os.link(index_url(f"{real.base}/{entry.name}"), index_url(str(root / name)))
    identity = {"schema": STATE_SCHEMA, "corpora": {"real": manifest.version}, "lane_count": config.lanes}
    state = {**identity, "seed": config.seed, "step": 1, **state_of(positions, ["real"], 0, 1)}
    return str(root), state
