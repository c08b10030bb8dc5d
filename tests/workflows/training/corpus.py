"""A small corpus with images in the real shard format, and a config that trains a small real model on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from oneflow_core.data.manifest import Account, Manifest, ShardEntry, Totals
from oneflow_core.data.reader import index_url
from oneflow_core.data.shard import Sample, write_shard
from oneflow_core.data.table import Table
from oneflow_core.document import Document, ImageSegment, TextSegment
from oneflow_core.encoders.latent import LatentCodec
from oneflow_core.encoders.understanding import UnderstandingEncoder
from workflows.training.config import TrainConfig

SIDE = 4
COLOURS = ("red", "green", "blue", "yellow")


def sample(number: int, channels: int, features: int) -> Sample:
    """An image of one of four patterns with its caption; every fifth document is text alone."""
    rng = np.random.default_rng(number)
    colour = number % len(COLOURS)
    text = TextSegment(f"a {COLOURS[colour]} thing number {number % 7}")
    if number % 5 == 4:
        return Sample(Document(f"doc-{number}", "test", "CC0-1.0", (text,)))
    digest = hashlib.sha256(f"{number}".encode()).hexdigest()
    document = Document(f"doc-{number}", "test", "CC0-1.0", (text, ImageSegment(digest, 8, 8)))
    latent = np.zeros((channels, SIDE, SIDE), np.float16)
    latent[colour] = 1 + 0.1 * rng.standard_normal((SIDE, SIDE))
    return Sample(document, (latent,), (np.full((4, features), colour, np.float16),))


def instruction(number: int, channels: int, features: int) -> Sample:
    """A question about such an image, or every third time a story of two of them."""
    digest = hashlib.sha256(f"i{number}".encode()).hexdigest()
    colours = [(number + i) % len(COLOURS) for i in range(2)]
    latents = [np.zeros((channels, SIDE, SIDE), np.float16) for _ in colours]
    for latent, colour in zip(latents, colours, strict=True):
        latent[colour] = 1
    shown = tuple(np.full((4, features), colour, np.float16) for colour in colours)
    if number % 3 == 2:
        texts = [TextSegment(f"a {COLOURS[colour]} thing") for colour in colours]
        images = [ImageSegment(digest[:-1] + str(i), 8, 8) for i in range(2)]
        segments = tuple(part for pair in zip(texts, images, strict=True) for part in pair)
        return Sample(Document(f"story-{number}", "test", "CC0-1.0", segments), tuple(latents), shown)
    asked = (ImageSegment(digest, 8, 8, "prompt"), TextSegment("what colour?", "prompt"))
    answer = TextSegment(COLOURS[colours[0]], "target")
    return Sample(
        Document(f"vqa-{number}", "test", "CC0-1.0", (*asked, answer)), tuple(latents[:1]), shown[:1]
    )


def write_corpus(
    base: Path,
    shards: int = 3,
    samples: int = 60,
    *,
    real: bool = False,
    make: Callable[[int, int, int], Sample] = sample,
) -> Manifest:
    """A corpus of `shards * samples` documents of `make` in `base`.

    `real` gives it the embedded encoders' ids and widths, and copies of them in `base`: "codec" and "encoder".
    """
    base.mkdir(parents=True)
    codec, encoder, channels, features = ("codec@0", "encoder@0", 4, 8)
    if real:
        ours, theirs = LatentCodec.from_pretrained(), UnderstandingEncoder.from_pretrained()
        ours.save_pretrained(base / "codec")
        theirs.save_pretrained(base / "encoder")
        codec, encoder, channels, features = ours.id, theirs.id, ours.channels, theirs.dim
    entries = []
    for index in range(shards):
        held = [make(index * samples + i, channels, features) for i in range(samples)]
        shard = write_shard(held)
        name, offsets = f"shard-{index:06d}.tar", shard.index.to_bytes()
        (base / name).write_bytes(shard.data)
        Path(index_url(str(base / name))).write_bytes(offsets)
        images = sum(len(s.latents) for s in held)
        digest = hashlib.sha256(offsets).hexdigest()
        entries.append(ShardEntry(name, samples, images, 0, len(shard.data), shard.sha256, digest))
    count = shards * samples
    created = {"package": "oneflow 0", "git_commit": "none", "config_digest": "0" * 64}
    manifest = Manifest(
        "tiny", "0" * 12, created, codec, encoder, ((channels, SIDE, SIDE),), (4, features), Totals.of(entries),
        {"CC0-1.0": count}, {"test": Account(count, count)}, Table.of(ShardEntry, entries), base=str(base),
    )  # fmt: skip
    for file, data in manifest.files().items():
        (base / file).write_bytes(data)
    return manifest


def tiny_config(corpus: Path, checkpoints: Path, **changes: Any) -> TrainConfig:
    """A run of seconds; `changes` replace keys, `section__key=value` within a section."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "model": {"dims": {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 64}},
        "data": {
            "corpora": [{"url": str(corpus)}],
            "tokens": 256,
            "lanes": 2,
            "holdout": 0.1,
            "heldout_packs": 1,
            "reader": "thread",
        },
        "optimiser": {"kind": "muon", "lr": 3e-3, "warmup_steps": 5},
        "budget": {"steps": 12},
        "checkpoint": {"url": str(checkpoints), "every_steps": 4},
        "watch": {"log_every": 2, "heldout_every": 4, "sample_every": 1000},
        "compute": {"workers": 2, "device": "cpu", "shard_min_mb": 0},
    }
    for key, value in changes.items():
        *sections, name = key.split("__")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return TrainConfig.model_validate(tree)
