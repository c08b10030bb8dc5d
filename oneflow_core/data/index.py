"""The offset index of a shard: for every sample its members' places, sizes and digests in the tar."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

INDEX_SCHEMA = 1


class ShardError(ValueError):
    """A shard or sample that does not follow the format; the message names the sample or member."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a sample: `offset` and `size` of its content in the tar, in bytes, header not counted."""

    name: str
    """What follows the key and its dot: "json", "0.latent.npy", ..."""
    offset: int
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class SampleEntry:
    """A sample's key and members, which lie side by side in the tar."""

    key: str
    members: tuple[Member, ...]

    @property
    def start(self) -> int:
        """First byte of the first member's content."""
        return self.members[0].offset

    @property
    def stop(self) -> int:
        """One past the last byte of the last member's content."""
        return self.members[-1].offset + self.members[-1].size


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """All samples of a shard, in order, and the `size` of the tar in bytes."""

    samples: tuple[SampleEntry, ...]
    size: int

    def to_bytes(self) -> bytes:
        """JSON, the same bytes for the same index."""
        samples = [
            [entry.key, [[m.name, m.offset, m.size, m.digest] for m in entry.members]]
            for entry in self.samples
        ]
        tree = {"schema": INDEX_SCHEMA, "bytes": self.size, "samples": samples}
        return json.dumps(tree, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """Reads what `to_bytes` wrote.

        Raises:
            ShardError: not such an index, or another schema version.
        """
        try:
            tree = json.loads(data)
            if tree["schema"] != INDEX_SCHEMA:
                raise ShardError(f"index schema {tree['schema']!r} is not {INDEX_SCHEMA}; rebuild the index")
            samples = tuple(
                SampleEntry(str(key), tuple(Member(*member) for member in members))
                for key, members in tree["samples"]
            )
            return cls(samples, int(tree["bytes"]))
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ShardError(f"not a shard index: {error!r}") from None

    @classmethod
    def of_tar(cls, data: bytes | memoryview) -> ShardIndex:
        """The index of a shard whose tar is all that is left of it.

        Raises:
            ShardError: no tar, cut short, or with members that are no samples' files.
        """
        samples = tuple(SampleEntry(key, tuple(members)) for key, members in _groups(data))
        keys = {entry.key for entry in samples}
        if len(keys) != len(samples):
            raise ShardError("a key stands in two places of the tar; its samples must lie side by side")
        return cls(samples, len(data))


def digest_of(data: bytes | memoryview) -> str:
    """BLAKE2b-128 in hex: what the index holds for a member's bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _groups(data: bytes | memoryview) -> Iterator[tuple[str, list[Member]]]:
    """Keys with their members, each key's run in the tar together."""
    current: tuple[str, list[Member]] | None = None
    for info in _infos(data):
        key, dot, name = info.name.partition(".")
        if not info.isreg() or not dot or "/" in key:
            raise ShardError(f"member {info.name!r} is no file named <key>.<what>")
        content = data[info.offset_data : info.offset_data + info.size]
        if len(content) != info.size:
            raise ShardError(f"the tar ends within {info.name!r}")
        if current is None or current[0] != key:
            if current is not None:
                yield current
            current = (key, [])
        current[1].append(Member(name, info.offset_data, info.size, digest_of(content)))
    if current is not None:
        yield current


def _infos(data: bytes | memoryview) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            return tar.getmembers()
    except tarfile.TarError as error:
        raise ShardError(f"not a whole tar: {error}") from None
