"""The manifest of a sharded corpus: what it holds, what it was made from, and the digest of every shard.

It is written last: a reader follows manifests only, and a corpus without one is not there. The published form
is `schemas/manifest.schema.json`, and every manifest is checked against it when it is read or made JSON.

The lists of shards, inputs and parts lie beside it as Parquet, named in it by their digests; those of a small corpus
stand in it too, for people and for programs that read JSON alone. It holds a digest of itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from oneflow_core.data.table import ListFile, Table, TableError, listed

MANIFEST_SCHEMA = 2
INLINE_ROWS = 1000
"""Longest lists that stand in manifest.json too."""
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
class Part:
    """A stored part that the corpus was made from (documents, latents, ...), by its path below the corpus root."""

    path: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all shards."""

    samples: int
    images: int
    text_bytes: int
    bytes: int

    @classmethod
    def of(cls, shards: Sequence[ShardEntry]) -> Totals:
        """The sums over `shards`."""
        table = Table.of(ShardEntry, shards)
        return cls(*(int(table.column(f.name).sum()) for f in dataclasses.fields(cls)))


@dataclass(frozen=True, slots=True)
class Account:
    """What became of a source's documents: `read` = `kept` + all of `refused`, by reason."""

    read: int
    kept: int
    refused: Mapping[str, int] = field(default_factory=dict)


LISTS: dict[str, type] = {"shards": ShardEntry, "inputs": Input, "parts": Part}
"""Field of a manifest that is a list -> its entries' class; the file is <field>-<digest>.parquet."""


@dataclass(frozen=True)
class Manifest:
    """A version of a corpus.

    `created_by` names the program ("package", "git_commit", "config_digest"). `codec` and `encoder` are the
    ids of what made latents and features (None: no images, or no features stored). `latent_shapes` are the distinct
    [C, h, w] of the latents, several where images keep their aspect; `features_shape` is [P, dim], the same for all.
    `parts` are what was stored on the way, for whoever collects garbage. `base` is the directory it was loaded from,
    no part of the JSON; `lists` what the files beside it are, known once it was written or read.
    """

    name: str
    version: str
    created_by: Mapping[str, str]
    codec: str | None
    encoder: str | None
    latent_shapes: tuple[tuple[int, int, int], ...]
    features_shape: tuple[int, int] | None
    totals: Totals
    licences: Mapping[str, int]
    accounts: Mapping[str, Account]
    shards: Table[ShardEntry]
    inputs: Table[Input] = field(default_factory=lambda: Table.of(Input, ()))
    parts: Table[Part] = field(default_factory=lambda: Table.of(Part, ()))
    base: str = field(default="", compare=False)
    lists: Mapping[str, ListFile] = field(default_factory=dict, compare=False)

    @property
    def latent_shape(self) -> tuple[int, int, int] | None:
        """[C, h, w] where all latents have one shape; None where there are none, or several."""
        return self.latent_shapes[0] if len(self.latent_shapes) == 1 else None

    def shard_url(self, shard: ShardEntry) -> str:
        """Where `shard` lies; its index is beside it (`oneflow_core.data.reader.index_url`)."""
        return f"{self.base.rstrip('/')}/{shard.name}"

    def files(self) -> dict[str, bytes]:
        """What is to be written, by name, manifest.json last; equal manifests give equal bytes.

        Raises:
            ManifestError: totals are not the sums, or an account does not close.
        """
        found = {name: getattr(self, name).to_bytes() for name in LISTS}
        lists = {name: listed(data, len(getattr(self, name))) for name, data in found.items()}
        files = {lists[name].file_name(name): data for name, data in found.items()}
        return {**files, MANIFEST_NAME: dataclasses.replace(self, lists=lists).to_bytes()}

    def to_json(self) -> dict[str, Any]:
        """A JSON object under the published schema.

        Raises:
            ManifestError: totals are not the sums, or an account does not close.
        """
        plain = (
            "name",
            "version",
            "created_by",
            "codec",
            "encoder",
            "latent_shapes",
            "features_shape",
            "licences",
        )
        tree: dict[str, Any] = {"schema": MANIFEST_SCHEMA} | {name: getattr(self, name) for name in plain}
        tree["totals"] = dataclasses.asdict(self.totals)
        tree["accounts"] = {name: dataclasses.asdict(account) for name, account in self.accounts.items()}
        tree["lists"] = {name: dataclasses.asdict(file) for name, file in self.lists.items()}
        for name in ("shards", "inputs"):
            table: Table[Any] = getattr(self, name)
            tree[name] = [dataclasses.asdict(e) for e in table] if len(table) <= INLINE_ROWS else None
        tree = json.loads(json.dumps(tree))
        tree["digest"] = _digest(tree)
        _check_schema(tree)
        _check(tree, self.shards)
        return tree

    def to_bytes(self) -> bytes:
        """The bytes of manifest.json: equal manifests give equal bytes."""
        return (json.dumps(self.to_json(), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, tree: Any, base: str = "", fetch: Callable[[str], bytes] | None = None) -> Manifest:
        """Reads what `to_json` wrote; `fetch` gives the bytes of a list's file by its name, where one is needed.

        Raises:
            ManifestError: it does not follow the schema, or its figures do not add up.
        """
        if isinstance(tree, dict) and tree.get("schema") == 1:
            raise ManifestError(
                "schema: 1 is from before lists lay beside the manifest; build the corpus again"
            )
        _check_schema(tree)
        lists = {name: ListFile(**file) for name, file in tree["lists"].items()}
        tables = {name: _table(name, tree.get(name), lists, fetch) for name in LISTS}
        _check(tree, tables["shards"])
        known = {f.name: tree[f.name] for f in dataclasses.fields(cls) if f.name in tree}
        known |= {"totals": Totals(**tree["totals"]), "lists": lists, **tables}
        known["accounts"] = {name: Account(**a) for name, a in tree["accounts"].items()}
        known["latent_shapes"] = tuple(tuple(shape) for shape in tree["latent_shapes"])
        known["features_shape"] = tree["features_shape"] and tuple(tree["features_shape"])
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
            return cls.from_json(json.loads(data), base, lambda name: _read(f"{base}/{name}"))
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
        version = _read(f"{url}/{LATEST_NAME}").decode(errors="replace").strip()
    except FileNotFoundError:
        looked = f"neither {MANIFEST_NAME} nor {LATEST_NAME} is there"
        raise FileNotFoundError(f"{url}: {looked}; build the corpus, or name one of its versions") from None
    if not re.fullmatch(r"[\w-][\w.-]*", version, re.ASCII):
        raise ManifestError(f"{url}/{LATEST_NAME}: names no version; build the corpus again")
    return f"{url}/{version}", _read(f"{url}/{version}/{MANIFEST_NAME}")


def _read(url: str) -> bytes:
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(url)
    data: bytes = filesystem.cat_file(path)
    return data


def _table(
    name: str, inline: Any, lists: Mapping[str, ListFile], fetch: Callable[[str], bytes] | None
) -> Table[Any]:
    """A list from the manifest itself, or from its file: when it is first needed."""
    kind: type[Any] = LISTS[name]
    if inline is not None:
        return Table.of(kind, (kind(**entry) for entry in inline))
    if name not in lists:
        return Table.of(kind, ())

    file = lists[name].file_name(name)

    def load() -> Any:
        if fetch is None:
            raise ManifestError(f"lists.{name}: lies in a file; load the manifest from where it is")
        try:
            data = fetch(file)
        except FileNotFoundError:
            raise ManifestError(f"{file}: nothing is there; fetch it anew") from None
        if listed(data, 0).sha256 != lists[name].sha256:
            raise ManifestError(f"{file}: is not the list that the manifest names; fetch it anew")
        try:
            return Table.of_bytes(kind, data).columns_of()
        except TableError as error:
            raise ManifestError(f"{file}: {error}") from None

    return Table(kind, lists[name].rows, load)


def _digest(tree: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's JSON without its own digest, in one fixed form."""
    rest = {key: value for key, value in tree.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_schema(tree: Any) -> None:
    from jsonschema import Draft202012Validator

    error = next(Draft202012Validator(schema()).iter_errors(tree), None)
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path) or "manifest"
        raise ManifestError(f"{where}: {error.message:.300}")


def _check(tree: Any, shards: Table[ShardEntry]) -> None:
    """What the schema cannot say of a tree that follows it."""
    if Totals.of(shards) != Totals(**tree["totals"]):
        raise ManifestError("totals: are not the sums over shards")
    for source, account in tree["accounts"].items():
        if account["read"] != account["kept"] + sum(account["refused"].values()):
            raise ManifestError(f"accounts.{source}: read is not kept plus refused")
    if sum(account["kept"] for account in tree["accounts"].values()) != tree["totals"]["samples"]:
        raise ManifestError("accounts: what was kept is not what the shards hold")
    if tree["digest"] != _digest(tree):
        raise ManifestError("digest: the manifest was changed after it was written; build the corpus again")
