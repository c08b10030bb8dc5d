"""What a corpus is made of, and how."""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from workflows.config import Config
from workflows.corpus.fingerprint import fingerprint

FORMAT = 1
"""Goes up when ingest, encode or shard give other bytes for the same input, so that nothing old is mixed in."""

Name = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class SourceConfig(Config):
    """One source: files of one format under one licence."""

    name: str = Field(pattern=Name)
    """Stands in document ids and paths."""
    format: Literal["webdataset", "jsonl", "folder"]
    """webdataset: tars of images with .txt and .json beside. jsonl: rows with questions or segments, images in a
    tar or folder of the same stem. folder: directories of images with .txt and .json beside."""
    urls: list[str] = Field(min_length=1)
    """Files, or directories for `folder`; `*`, `?`, `{a,b}` and `{00..09}` are understood, and `${root}`."""
    licence: str = Field(min_length=1)
    """SPDX id or a name, for documents that do not carry their own."""
    caption: str = "{txt}"
    """webdataset, folder: how the caption is made of a sample's members: `{txt}`, `{json.caption}`, ..."""
    columns: dict[str, str] = {}
    """jsonl: our column name -> theirs (id, question, answer, image, segments, text, licence)."""
    limit: int | None = Field(default=None, ge=1)
    """Most documents taken of each file, in the order of its rows; None: all."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the documents taken, chosen by seed and document id."""

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        known = {"id", "question", "answer", "image", "segments", "text", "licence"}
        unknown = sorted(set(columns) - known)
        if unknown:
            raise ValueError(f"unknown column {unknown[0]!r} (known: {', '.join(sorted(known))})")
        return columns


class LimitsConfig(Config):
    """What is refused, row by row, into quarantine."""

    text_bytes: int = Field(default=64 * 1024, ge=1)
    """Longest text of a segment, in bytes of UTF-8."""
    image_pixels: int = Field(default=64_000_000, ge=1)
    """Largest image; a larger one (a decompression bomb) is refused by its header, before it is decoded."""
    image_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Largest image file."""
    images: int = Field(default=32, ge=1)
    """Most images in a document."""


class ModelConfig(Config):
    """A codec or encoder by name."""

    name: str = "embedded"
    """"embedded", a directory, or a hub name."""
    subfolder: str | None = None
    """Where in a directory or repository the model lies, e.g. vae."""


class EncodeConfig(Config):
    """How images become latents and features."""

    codec: ModelConfig = ModelConfig()
    """Latent codec: what the model generates."""
    understanding: ModelConfig | None = ModelConfig()
    """Understanding encoder: what the model looks at; null stores no features."""
    image_size: int = Field(default=64, ge=8)
    """Side of the square, in pixels, that every image is cropped and resized to."""
    batch_size: int = Field(default=64, ge=1)
    """Images in one pass of the encoders. Short batches are padded, so that a latent does not depend on it."""
    part_images: int = Field(default=1024, ge=1)
    """Most images in one stored part."""
    actors: int | None = Field(default=None, ge=1)
    """Encoders at once; None: one for each CPU of the cluster (or GPU, when they take one)."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """GPUs that each encoder takes; 0 encodes on the CPU."""


class ShardConfig(Config):
    """How documents become shards."""

    target_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Size of a shard, about; the last bytes depend on the documents that fall into it."""
    minimum: int = Field(default=1, ge=1)
    """Least shards, when there are as many documents: a loader with many workers wants several for each."""


class CorpusConfig(Config):
    """A corpus: where it lies, its sources, its encoders."""

    name: str = Field(pattern=Name)
    """Name of the sharded corpus, under `<root>/shards/`."""
    root: str = Field(min_length=1)
    """Corpus root, any fsspec URL; parts are shared by all corpora under it."""
    sources: list[SourceConfig] = Field(min_length=1)
    limits: LimitsConfig = LimitsConfig()
    encode: EncodeConfig = EncodeConfig()
    shard: ShardConfig = ShardConfig()
    seed: int = 0
    """Seed of the global shuffle and of `share`."""

    @field_validator("root")
    @classmethod
    def _plain_root(cls, root: str) -> str:
        return root.rstrip("/") or "/"

    @model_validator(mode="after")
    def _one_name_each(self) -> Self:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}; every source needs its own name")
        return self

    def urls_of(self, source: SourceConfig) -> list[str]:
        """The source's URL patterns with `${root}` put in."""
        return [url.replace("${root}", self.root) for url in source.urls]

    def ingest_digest(self, source: SourceConfig) -> str:
        """Digest of all in this config that decides what the documents of `source` are."""
        what = source.model_dump(mode="json", exclude={"urls", "share"})
        return _digest(["ingest", FORMAT, what, self.limits.model_dump(mode="json")])

    def digest(self) -> str:
        """Digest of all in this config that decides the bytes of the shards: not where things lie, nor how fast."""
        sources = [s.model_dump(mode="json", exclude={"urls"}) for s in self.sources]
        codec, encoder = self.encode.codec, self.encode.understanding
        models = [fingerprint(codec, "latent_codec"), fingerprint(encoder, "understanding_encoder")]
        shape = [self.encode.image_size, self.encode.batch_size, self.encode.part_images]
        limits, shard = self.limits.model_dump(mode="json"), self.shard.model_dump(mode="json")
        return _digest(["corpus", FORMAT, self.name, sources, limits, models, shape, shard, self.seed])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
