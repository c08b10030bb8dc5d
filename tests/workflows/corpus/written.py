"""A version of a corpus written straight from samples, without the jobs."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from oneflow_core.data.manifest import Account, Manifest, Part, ShardEntry, Totals
from oneflow_core.data.reader import index_url
from oneflow_core.data.shard import Sample, write_shard
from oneflow_core.data.table import Table


def write_version(
    base: Path, samples: Sequence[Sample], size: int, codec: str | None = "codec@0", parts: Sequence[str] = ()
) -> Manifest:
    """`samples` in shards of `size`, under `base`, with their manifest, which says that it was made of `parts`."""
    base.mkdir(parents=True, exist_ok=True)
    entries = []
    for start in range(0, len(samples), size):
        held = samples[start : start + size]
        shard, name = write_shard(held), f"shard-{len(entries):06d}.tar"
        (base / name).write_bytes(shard.data)
        index = shard.index.to_bytes()
        Path(index_url(str(base / name))).write_bytes(index)
        images = sum(len(s.latents) for s in held)
        text = sum(len(t.text.encode()) for s in held for t in s.document.texts)
        digest = hashlib.sha256(index).hexdigest()
        entries.append(ShardEntry(name, len(held), images, text, len(shard.data), shard.sha256, digest))
    shapes = {latent.shape for s in samples for latent in s.latents}
    manifest = Manifest(
        name=base.parent.name,
        version=base.name,
        created_by={"package": "oneflow", "git_commit": "unknown", "config_digest": "0"},
        codec=codec,
        encoder=None,
        latent_shapes=tuple(sorted(shapes)),
        features_shape=None,
        parts=Table.of(Part, map(Part, parts)),
        shards=Table.of(ShardEntry, entries),
        totals=Totals.of(entries),
        licences=dict(Counter(s.document.licence for s in samples)),
        accounts={n: Account(k, k) for n, k in Counter(s.document.source for s in samples).items()},
        base=str(base),
    )
    for name, data in manifest.files().items():
        (base / name).write_bytes(data)
    return manifest
