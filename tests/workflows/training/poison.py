"""A corpus in which chosen steps of a run meet a document with infinite latents and features."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from oneflow_core.data.manifest import Account, Manifest, ShardEntry, Totals
from oneflow_core.data.reader import index_url
from oneflow_core.data.shard import Sample, write_shard
from oneflow_core.data.table import Table
from tests.workflows.training.corpus import SIDE, sample, tiny_config
from workflows.training.materials import gather

CHANNELS, FEATURES, DOCUMENTS = 4, 8, 900


def poisoned(number: int, bad: frozenset[str]) -> Sample:
    made = sample(number, CHANNELS, FEATURES)
    if made.document.doc_id not in bad:
        return made
    latents = tuple(np.full_like(latent, np.inf) for latent in made.latents)
    return replace(made, latents=latents, features=tuple(np.full_like(f, np.inf) for f in made.features))


def write_poisoned(base: Path, bad: frozenset[str] = frozenset()) -> None:
    """One shard of documents, those named in `bad` spoilt; which of them a step reads does not depend on `bad`."""
    base.mkdir(parents=True)
    shard = write_shard([poisoned(number, bad) for number in range(DOCUMENTS)])
    offsets = shard.index.to_bytes()
    (base / "shard-000000.tar").write_bytes(shard.data)
    Path(index_url(str(base / "shard-000000.tar"))).write_bytes(offsets)
    digest, images = hashlib.sha256(offsets).hexdigest(), DOCUMENTS - DOCUMENTS // 5
    entries = [ShardEntry("shard-000000.tar", DOCUMENTS, images, 0, len(shard.data), shard.sha256, digest)]
    created = {"package": "oneflow 0", "git_commit": "none", "config_digest": "0" * 64}
    manifest = Manifest(
        "tiny", "0" * 12, created, "codec@0", "encoder@0", ((CHANNELS, SIDE, SIDE),), (4, FEATURES),
        Totals.of(entries), {"CC0-1.0": DOCUMENTS}, {"test": Account(DOCUMENTS, DOCUMENTS)},
        Table.of(ShardEntry, entries), base=str(base),
    )  # fmt: skip
    for file, data in manifest.files().items():
        (base / file).write_bytes(data)


def read_at(corpus: Path, steps: int, rank: int, workers: int) -> list[list[str]]:
    """The documents with images that a worker reads at each step."""
    config = tiny_config(corpus, corpus / "none", data__holdout=0, compute__workers=workers)
    loader = gather(config).build_loader(config.data, config.seed, "train", rank, workers)
    stream = iter(loader)
    read = [[doc for pack in next(stream) for doc in pack.doc_ids] for _ in range(steps)]
    loader.close()
    return [[doc for doc in docs if int(doc.split("-")[1]) % 5 != 4] for docs in read]
