"""Manifests of corpora that are not there, of any number of shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from oneflow_core.data.manifest import Account, Manifest, ShardEntry, Totals
from oneflow_core.data.table import Table, schema_of


def write_manifest(directory: Path, name: str, shards: int, entry: ShardEntry | None = None) -> Manifest:
    """A corpus of so many shards in `directory`, all alike.

    They are as `entry` says; without one, of 1,000 samples and of digests drawn at random.
    """
    directory.mkdir(parents=True)
    alike = entry or ShardEntry("", 1000, 1000, 120_000, 35_000_000, "", "")
    numbers = {f: getattr(alike, f) for f in ("samples", "images", "text_bytes", "bytes")}
    digests = [_digests(alike.sha256, shards, 0), _digests(alike.index_sha256, shards, 1)]
    columns = [pa.array([f"shard-{i:06d}.tar" for i in range(shards)])]
    columns += [pa.array(np.full(shards, value, np.int64)) for value in numbers.values()]
    table = pa.table([*columns, *digests], schema=schema_of(ShardEntry))
    samples = shards * alike.samples
    manifest = Manifest(
        name=name,
        version=f"synthetic-{shards}",
        created_by={"package": "oneflow bench", "git_commit": "unknown", "config_digest": "none"},
        codec="bench@0",
        encoder=None,
        latent_shapes=((16, 32, 32),),
        features_shape=None,
        totals=Totals(**{field: value * shards for field, value in numbers.items()}),
        licences={"CC-BY-4.0": samples},
        accounts={name: Account(samples, samples)},
        shards=Table(ShardEntry, shards, lambda: table),
    )
    for file_name, data in manifest.files().items():
        (directory / file_name).write_bytes(data)
    return manifest


def _digests(digest: str, count: int, seed: int) -> pa.Array:
    data = bytes.fromhex(digest) * count if digest else np.random.default_rng(seed).bytes(32 * count)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), count, [None, pa.py_buffer(data)])
