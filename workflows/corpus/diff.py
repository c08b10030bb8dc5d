"""Diff: which documents came, went or changed between two versions of a corpus, or between two corpora.

Documents are told apart by their keys, and compared by the digests in the shards' indexes: no shard is read. Shards
that both have are passed over; of the others 32 bytes a document are held.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from oneflow_core.data.index import SampleEntry, ShardIndex
from oneflow_core.data.manifest import Input, Manifest, ShardEntry
from oneflow_core.data.reader import index_url
from workflows.corpus.verify import load_manifest
from workflows.storage import read_bytes

Change = Literal["came", "went", "changed"]
READS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Difference:
    """One document: its key, and for a changed one the members that differ (json, 0.latent.npy, ...)."""

    change: Change
    key: str
    members: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One line of `--out`."""
        return {"change": self.change, "key": self.key, "members": list(self.members)}


@dataclass(frozen=True, slots=True)
class DiffReport:
    """`a` and `b` beside each other; `documents` has every one that differs, the others are `same`."""

    a: Manifest
    b: Manifest
    same: int
    documents: tuple[Difference, ...]
    inputs: tuple[tuple[Change, str], ...]
    """Input files that came, went or have other bytes, as source/name."""

    def count(self, change: Change) -> int:
        """How many documents came, went or changed."""
        return sum(d.change == change for d in self.documents)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        counts = {change: self.count(change) for change in ("came", "went", "changed")}
        kept = {
            side: {name: account.kept for name, account in manifest.accounts.items()}
            for side, manifest in (("a", self.a), ("b", self.b))
        }
        return {
            "a": {"url": self.a.base, "version": self.a.version, "kept": kept["a"]},
            "b": {"url": self.b.base, "version": self.b.version, "kept": kept["b"]},
            "same": self.same,
            **counts,
            "same_codec": self.a.codec == self.b.codec,
            "same_encoder": self.a.encoder == self.b.encoder,
            "same_config": self.a.created_by["config_digest"] == self.b.created_by["config_digest"],
            "inputs": [{"change": change, "file": name} for change, name in self.inputs],
        }


def diff(a: str, b: str) -> DiffReport:
    """What differs between the corpora at `a` and at `b`: what is only in `b` came, what is only in `a` went.

    Raises:
        OneFlowError: no corpus there, or an index of it that cannot be read.
    """
    old, new = load_manifest(a), load_manifest(b)
    left, right = _Side.of(old, set(map(_what, new.shards))), _Side.of(new, set(map(_what, old.shards)))
    found = list(_named(left, right, _differing(left, right)))
    same = old.totals.samples - sum(d.change != "came" for d in found)
    order = sorted(found, key=lambda d: (d.change, d.key))
    return DiffReport(old, new, same, tuple(order), tuple(_inputs(old.inputs, new.inputs)))


PAIR = np.dtype([("high", "u8"), ("low", "u8")])
"""A digest of 16 bytes as numbers, which numpy can order."""


@dataclass(frozen=True, slots=True)
class _Side:
    """Digests of the documents in those shards of a manifest that the other has not: keys sorted, contents beside."""

    manifest: Manifest
    shards: list[ShardEntry]
    keys: np.ndarray
    contents: np.ndarray

    @classmethod
    def of(cls, manifest: Manifest, common: set[tuple[str, str]]) -> "_Side":
        shards = [shard for shard in manifest.shards if _what(shard) not in common]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            tables = list(pool.map(lambda s: _digests(_entries(manifest, s)), shards))
        table = np.concatenate([np.zeros((0, 2), PAIR), *tables])
        order = np.argsort(table[:, 0], kind="stable")
        return cls(manifest, shards, table[order, 0], table[order, 1])


def _what(shard: ShardEntry) -> tuple[str, str]:
    return shard.sha256, shard.index_sha256


def _entries(manifest: Manifest, shard: ShardEntry) -> Sequence[SampleEntry]:
    return ShardIndex.from_bytes(read_bytes(index_url(manifest.shard_url(shard)))).samples


def _digests(entries: Sequence[SampleEntry]) -> np.ndarray:
    """Digests of the key and of the members of each entry, [entries, 2]."""
    rows = b"".join(_key(entry) + _content(entry) for entry in entries)
    return np.frombuffer(rows, PAIR).reshape(-1, 2)


def _key(entry: SampleEntry) -> bytes:
    return hashlib.blake2b(entry.key.encode(), digest_size=PAIR.itemsize).digest()


def _content(entry: SampleEntry) -> bytes:
    members = "\n".join(f"{m.name}:{m.digest.hex()}" for m in entry.members)
    return hashlib.blake2b(members.encode(), digest_size=PAIR.itemsize).digest()


def _differing(a: _Side, b: _Side) -> set[bytes]:
    """Digests of the keys that are on one side alone, or on both with other contents."""
    alone = np.setxor1d(a.keys, b.keys)
    _, left, right = np.intersect1d(a.keys, b.keys, assume_unique=True, return_indices=True)
    other = a.keys[left][a.contents[left] != b.contents[right]]
    return {key.tobytes() for key in np.concatenate([alone, other])}


def _named(a: _Side, b: _Side, differing: set[bytes]) -> Iterator[Difference]:
    """The documents behind the digests, out of a second look at the indexes."""
    if not differing:
        return
    found: list[dict[str, dict[str, str]]] = []
    for side in (a, b):
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            parts = pool.map(partial(_members, side.manifest, differing), side.shards)
            found.append({key: members for part in parts for key, members in part.items()})
    old, new = found
    for key in old.keys() | new.keys():
        if key not in old:
            yield Difference("came", key)
        elif key not in new:
            yield Difference("went", key)
        else:
            names = sorted(n for n in old[key].keys() | new[key].keys() if old[key].get(n) != new[key].get(n))
            yield Difference("changed", key, tuple(names))


def _members(manifest: Manifest, wanted: set[bytes], shard: ShardEntry) -> dict[str, dict[str, str]]:
    return {
        e.key: {m.name: m.digest.hex() for m in e.members}
        for e in _entries(manifest, shard)
        if _key(e) in wanted
    }


def _inputs(a: Sequence[Input], b: Sequence[Input]) -> Iterator[tuple[Change, str]]:
    old, new = ({f"{i.source}/{i.name}": i.sha256 for i in side} for side in (a, b))
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield "came", name
        elif name not in new:
            yield "went", name
        elif old[name] != new[name]:
            yield "changed", name
