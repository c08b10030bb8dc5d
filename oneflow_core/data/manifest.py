"""The manifest of a sharded corpus: what it holds, what it was made from, and the digest of every shard.

It is written last: a reader follows manifests only, and a corpus without one is not there. The published form
is `schemas/manifest.schema.json`, and every manifest is checked against it when it is read or made JSON.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

MANIFEST_SCHEMA = 1
MANIFEST_NAME = "manifest.json"
LATEST_NAME = "latest"


class ManifestError(ValueError):
    """A manifest off its schema, or with figures that do not add up; the message names the field."""


@dataclass(frozen=True, slots=True)
class Input:
    """One file that the corpus was made from. `etag` tells without reading whether it is still the same."""

    source: str
    name: str
    url: str
    size: int
    etag: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard: its file name, what it holds, digests of the tar and of its index. Sizes in bytes."""

    name: str
    samples: int
    images: int
    text_bytes: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all shards."""

    samples: int
    images: int
    text_bytes: int
    bytes: int

    @classmethod
    def of(cls, shards: tuple[ShardEntry, ...]) -> Totals:
        """The sums over `shards`."""
        return cls(
            sum(s.samples for s in shards),
            sum(s.images for s in shards),
            sum(s.text_bytes for s in shards),
            sum(s.bytes for s in shards),
        )


@dataclass(frozen=True, slots=True)
class Account:
    """What became of a source's documents: `read` = `kept` + all of `refused`, by reason."""

    read: int
    kept: int
    refused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A version of a corpus.

    `created_by` names the program ("package", "git_commit", "config_digest"). `codec` and `encoder` are the
    ids of what made latents and features (None: no images, or no features stored). `latent_shape` is [C, h, w],
    `features_shape` [P, dim]; both the same for all images. `base` is the directory it was loaded from, no part
    of the JSON.
    """

    name: str
    version: str
    created_by: Mapping[str, str]
    inputs: tuple[Input, ...]
    codec: str | None
    encoder: str | None
    latent_shape: tuple[int, int, int] | None
    features_shape: tuple[int, int] | None
    shards: tuple[ShardEntry, ...]
    totals: Totals
    licences: Mapping[str, int]
    accounts: Mapping[str, Account]
    base: str = field(default="", compare=False)

    def shard_url(self, shard: ShardEntry) -> str:
        """Where `shard` lies; its index is beside it (`oneflow_core.data.reader.index_url`)."""
        return f"{self.base.rstrip('/')}/{shard.name}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object under the published schema.

        Raises:
            ManifestError: totals are not the sums, or an account does not close.
        """
        tree: dict[str, Any] = {"schema": MANIFEST_SCHEMA, **dataclasses.asdict(self)}
        del tree["base"]
        tree = json.loads(json.dumps(tree))
        _check(tree)
        return tree

    def to_bytes(self) -> bytes:
        """The file's bytes: equal manifests give equal bytes."""
        return (json.dumps(self.to_json(), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, tree: Any, base: str = "") -> Manifest:
        """Reads what `to_json` wrote.

        Raises:
            ManifestError: it does not follow the schema, or its figures do not add up.
        """
        _check(tree)
        known = {f.name: tree[f.name] for f in dataclasses.fields(cls) if f.name != "base"}
        known["inputs"] = tuple(Input(**i) for i in tree["inputs"])
        known["shards"] = tuple(ShardEntry(**s) for s in tree["shards"])
        known["totals"] = Totals(**tree["totals"])
        known["accounts"] = {name: Account(**a) for name, a in tree["accounts"].items()}
        for shape in ("latent_shape", "features_shape"):
            known[shape] = None if tree[shape] is None else tuple(tree[shape])
        return cls(**known, base=base)

    @classmethod
    def load(cls, url: str) -> Manifest:
        """The manifest at `url`: the file itself, a version's directory, or one with a pointer `latest`.

        Raises:
            FileNotFoundError: there is none; the message says where it was looked for.
            ManifestError: it is there, but not valid.
        """
        base, data = _find(url)
        try:
            return cls.from_json(json.loads(data), base)
        except (ManifestError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ManifestError(f"{base}/{MANIFEST_NAME}: {error}") from None


@cache
def schema() -> dict[str, Any]:
    """The published JSON Schema (draft 2020-12) of manifest.json."""
    text = resources.files("oneflow_core.data").joinpath("schemas/manifest.schema.json").read_text("utf-8")
    tree: dict[str, Any] = json.loads(text)
    return tree


def _find(url: str) -> tuple[str, bytes]:
    """The directory of the manifest that `url` means, and the manifest's bytes."""
    if url.endswith(".json"):
        return url.rpartition("/")[0] or ".", _read(url)
    url = url.rstrip("/")
    try:
        return url, _read(f"{url}/{MANIFEST_NAME}")
    except FileNotFoundError:
        pass
    try:
        version = _read(f"{url}/{LATEST_NAME}").decode().strip()
    except FileNotFoundError:
        looked = f"neither {MANIFEST_NAME} nor {LATEST_NAME} is there"
        raise FileNotFoundError(f"{url}: {looked}; build the corpus, or name one of its versions") from None
    return f"{url}/{version}", _read(f"{url}/{version}/{MANIFEST_NAME}")


def _read(url: str) -> bytes:
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(url)
    data: bytes = filesystem.cat_file(path)
    return data


def _check(tree: Any) -> None:
    from jsonschema import Draft202012Validator

    error = next(Draft202012Validator(schema()).iter_errors(tree), None)
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path) or "manifest"
        raise ManifestError(f"{where}: {error.message:.300}")
    shards = tuple(ShardEntry(**s) for s in tree["shards"])
    if Totals.of(shards) != Totals(**tree["totals"]):
        raise ManifestError("totals: are not the sums over shards")
    for source, account in tree["accounts"].items():
        if account["read"] != account["kept"] + sum(account["refused"].values()):
            raise ManifestError(f"accounts.{source}: read is not kept plus refused")
    if sum(account["kept"] for account in tree["accounts"].values()) != tree["totals"]["samples"]:
        raise ManifestError("accounts: what was kept is not what the shards hold")
