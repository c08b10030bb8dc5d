"""What a corpus is made of, and how."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from workflows.config import Config
from workflows.corpus.cleanup import CleanupConfig
from workflows.corpus.denial import denial_digest
from workflows.corpus.encode_config import EncodeConfig
from workflows.corpus.fingerprint import fingerprint
from workflows.corpus.frames import Frame
from workflows.corpus.image_files import ALL, ImageFormat
from workflows.corpus.selection_config import DuplicatesConfig
from workflows.corpus.source_config import Name, SourceConfig

FORMAT = 3
"""Goes up when ingest, encode or shard give other bytes for the same input, so that nothing old is mixed in."""


_PLACES: dict[str, Any] = {"urls": True, "images": True, "annotations": True, "fetch": {"threads"}}
"""Fields of a source that say where its files are, and how quickly they are got: not what is in them."""


class LimitsConfig(Config):
    """What is refused, row by row, into quarantine."""

    text_bytes: int = Field(default=64 * 1024, ge=1)
    """Longest text of a segment, in bytes of UTF-8."""
    image_pixels: int = Field(default=64_000_000, ge=1, le=178_000_000)
    """Largest image; a larger one (a decompression bomb) is refused by its header, before it is decoded. Pillow decodes
    none of more than 178 million pixels."""
    image_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Largest image file."""
    image_formats: tuple[ImageFormat, ...] = Field(default=ALL, min_length=1)
    """Formats of image files that are taken, told by their first bytes."""
    images: int = Field(default=32, ge=1)
    """Most images in a document."""


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
    cleanup: CleanupConfig = CleanupConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    deny: list[str] = []
    """Files, any fsspec URL, with one entry a line: the SHA-256 of an image, or the id of a document, that is left out.
    Their content counts: add a line and build, and only shards are written again."""
    encode: EncodeConfig = EncodeConfig()
    shard: ShardConfig = ShardConfig()
    first: int | None = Field(default=None, ge=1)
    """A first look: at most so many documents of each source, from a few of its files all over it; None: all."""
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
        return self.filled(source.urls)

    def filled(self, urls: Sequence[str]) -> list[str]:
        """URL patterns with `${root}` put in."""
        return [url.replace("${root}", self.root) for url in urls]

    def ingest_digest(self, source: SourceConfig) -> str:
        """Digest of all in this config that decides what the documents of `source` are."""
        what = source.model_dump(mode="json", exclude=_PLACES | {"share": True, "weight": True})
        checks = [self.limits.model_dump(mode="json"), self.cleanup.model_dump(mode="json")]
        return _digest(["ingest", FORMAT, what, *checks])

    def encode_digest(self) -> str:
        """Digest of all in this config that decides what an image is encoded to, the batch aside."""
        codec, encoder = self.encode.codec, self.encode.understanding
        models = [fingerprint(codec, "latent_codec"), fingerprint(encoder, "understanding_encoder")]
        return _digest(["encode", FORMAT, models, Frame.of(self.encode).name])

    def digest(self) -> str:
        """Digest of all in this config that decides the bytes of the shards: not where things lie, nor how fast."""
        sources = [s.model_dump(mode="json", exclude=_PLACES) for s in self.sources]
        encode = [self.encode_digest(), self.encode.batch_size, self.encode.part_images, self.encode.part_mb]
        denied = denial_digest(self.filled(self.deny))
        rest = [c.model_dump(mode="json") for c in (self.limits, self.cleanup, self.duplicates, self.shard)]
        return _digest(["corpus", FORMAT, self.name, sources, encode, rest, denied, self.first, self.seed])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
