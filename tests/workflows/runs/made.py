"""Runs and versions in a real MLflow as `oneflow train` leaves them, without the minutes of training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from oneflow_core.data.manifest import Input, Manifest
from oneflow_core.data.table import Table
from tests.workflows.training.corpus import tiny_config, write_corpus
from workflows.training.best import write_best
from workflows.training.config import TrainConfig
from workflows.training.materials import gather
from workflows.training.parallel import join_group
from workflows.training.register import Registered, export_and_register
from workflows.training.worker import open_tracker, run_root

Logged = Mapping[str, Mapping[int, float]]
"""Metric -> step -> value."""


def corpus_with_sources(base: Path, sources: Path, files: int = 5, samples: int = 20) -> Manifest:
    """A corpus whose manifest names `files` real files below `sources`, as ingest does."""
    manifest = write_corpus(base, shards=2, samples=samples, real=True)
    sources.mkdir(parents=True)
    entries = []
    for number in range(files):
        path = sources / f"part-{number}.txt"
        path.write_text(f"document {number}\n")
        data = path.read_bytes()
        etag = str(path.stat().st_mtime)
        entries.append(Input("raw", path.name, str(path), len(data), etag, hashlib.sha256(data).hexdigest()))
    manifest = replace(manifest, inputs=Table.of(Input, entries))
    for name, data in manifest.files().items():
        (base / name).write_bytes(data)
    return Manifest.load(str(base))


def config_of(corpus: Path, checkpoints: Path, experiment: str, **changes: Any) -> TrainConfig:
    """A tiny run that registers with the corpus's own encoders."""
    ours = {
        "registry__codec": str(corpus / "codec"),
        "registry__encoder": str(corpus / "encoder"),
        "registry__name": experiment,
        "tracking__experiment": experiment,
    }
    return tiny_config(corpus, checkpoints, **{**ours, **changes})


def tracked(
    config: TrainConfig, logged: Logged, tags: Mapping[str, str] | None = None, *, end: bool = True
) -> str:
    """A run of `config` with these metrics; returns its id. Without `end` it goes on."""
    materials = gather(config)
    tracker = open_tracker(config, materials, materials.run_key)
    assert tracker is not None
    if tags:
        tracker.tags(tags)
    for step in sorted({step for history in logged.values() for step in history}):
        tracker.metrics({name: h[step] for name, h in logged.items() if step in h}, step)
    run_id = tracker.run_id()
    assert run_id is not None
    if end:
        assert tracker.close().pending == 0
    else:
        tracker._outbox.close(30)
    return run_id


def registered(config: TrainConfig, step: int = 12, loss: float = 1.25) -> Registered:
    """A version out of untrained weights of the run of `config`."""
    materials = gather(config)
    root = run_root(config, materials.run_key)
    join_group(config.compute)
    try:
        write_best(root, step, loss, materials.build_model(config.seed).state_dict())
    finally:
        dist.destroy_process_group()
    version, _ = export_and_register(config, materials, materials.run_key, root)
    assert version is not None
    return version
