"""A corpus of real shards in a directory, of documents whose numbers and texts are told beforehand."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oneflow_core.data.manifest import Account, Manifest, ShardEntry, Totals
from oneflow_core.data.reader import index_url
from oneflow_core.data.shard import Sample, write_shard
from oneflow_core.data.table import Table
from oneflow_core.document import Document, ImageSegment, TextSegment


def write_corpus(
    base: Path, name: str, sizes: Sequence[int], lengths: Sequence[int] = (3, 9, 17)
) -> Manifest:
    shards, number = [], 0
    (base / name).mkdir(parents=True)
    for index, size in enumerate(sizes):
        samples = []
        for _ in range(size):
            text = "broken" if lengths[number % len(lengths)] == 0 else "x" * lengths[number % len(lengths)]
            image = ImageSegment(hashlib.sha256(f"{number}".encode()).hexdigest(), 8, 8)
            document = Document(f"{name}-{number}", "test", "CC0-1.0", (TextSegment(text), image))
            samples.append(Sample(document, (np.full((2, 2, 2), number, np.float16),)))
            number += 1
        shard = write_shard(samples)
        file = f"shard-{index:06d}.tar"
        (base / name / file).write_bytes(shard.data)
        offsets = shard.index.to_bytes()
        Path(index_url(str(base / name / file))).write_bytes(offsets)
        digest = hashlib.sha256(offsets).hexdigest()
        shards.append(ShardEntry(file, size, size, 0, len(shard.data), shard.sha256, digest))
    made = {"package": "tests", "git_commit": "unknown", "config_digest": "0"}
    return Manifest(
        name, "v1", made, "codec@0", None, ((2, 2, 2),), None, Totals.of(shards), {"CC0-1.0": number},
        {"test": Account(number, number)}, Table.of(ShardEntry, shards), base=str(base / name),
    )  # fmt: skip
