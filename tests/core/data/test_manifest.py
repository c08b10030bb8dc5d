"""The manifest: its published schema, its sums, and how it is found."""

import copy
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from jsonschema import Draft202012Validator

from oneflow_core.data import manifest as manifests
from oneflow_core.data.manifest import (
    Account,
    Input,
    Manifest,
    ManifestError,
    Part,
    ShardEntry,
    Totals,
    schema,
)
from oneflow_core.data.table import Table


@pytest.fixture
def manifest() -> Manifest:
    shards = tuple(
        ShardEntry(f"shard-00000{i}.tar", 10 + i, 12, 300, 4096, str(i) * 64, "f" * 64) for i in range(3)
    )
    return Manifest(
        name="shapes",
        version="0123abcd",
        created_by={"package": "oneflow 0.1.0", "git_commit": "unknown", "config_digest": "ab"},
        inputs=Table.of(Input, [Input("captions", "a.tar", "s3://b/a.tar", 5, '"e"', "0" * 64)]),
        parts=Table.of(Part, [Part("documents/captions/part-0.parquet")]),
        codec="embedded@0123",
        encoder=None,
        latent_shapes=((16, 8, 8),),
        features_shape=None,
        shards=Table.of(ShardEntry, shards),
        totals=Totals(33, 36, 900, 12288),
        licences={"CC0": 33},
        accounts={"captions": Account(40, 33, {"caption empty": 7})},
    )


def test_round_trip(manifest: Manifest) -> None:
    files = manifest.files()
    named = [re.fullmatch(r"(shards|inputs|parts)-([0-9a-f]{16})\.parquet", name) for name in files]
    assert [match and match[1] for match in named] == ["shards", "inputs", "parts", None]
    for match, data in zip(named, files.values(), strict=True):
        assert match is None or hashlib.sha256(data).hexdigest().startswith(match[2])
    assert list(files)[-1] == "manifest.json"
    again = Manifest.from_json(json.loads(files["manifest.json"]), "", files.__getitem__)
    assert again == manifest and again.latent_shape == (16, 8, 8)
    assert again.to_bytes() == files["manifest.json"] and again.files() == files


def test_long_lists_lie_in_their_files_alone(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "INLINE_ROWS", 2)
    files = manifest.files()
    tree = json.loads(files["manifest.json"])
    assert tree["shards"] is None and len(tree["inputs"]) == 1
    assert Manifest.from_json(tree, "", files.__getitem__) == manifest
    shards, inputs, *_ = files
    files[shards] = files[inputs]
    with pytest.raises(ManifestError, match=r"shards-\w+\.parquet: is not the list"):
        Manifest.from_json(tree, "", files.__getitem__)


def test_the_lists_are_parquet_that_anyone_reads(manifest: Manifest) -> None:
    rows = pd.read_parquet(io.BytesIO(next(iter(manifest.files().values()))))
    assert rows["name"].tolist() == [shard.name for shard in manifest.shards]
    assert [digest.hex() for digest in rows["sha256"]] == [shard.sha256 for shard in manifest.shards]
    assert rows["samples"].tolist() == [10, 11, 12]


def test_any_change_of_a_byte_is_found(manifest: Manifest) -> None:
    data = manifest.files()["manifest.json"]
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        try:
            found = Manifest.from_json(json.loads(changed), "")
        except (ManifestError, ValueError):
            continue
        # What differs is blank space alone; `oneflow corpus verify` compares the bytes.
        assert found.to_bytes() == data


def test_the_published_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema())


def edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(tree: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        node: Any = tree
        for key in parents:
            node = node[int(key) if key.isdigit() else key]
        node[last] = value

    return apply


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (edit("schema", 1), "schema: 1 is from before"),
        (edit("schema", 3), "schema"),
        (edit("licences.CC0", 32), "digest"),
        (edit("surprise", 1), "surprise"),
        (edit("version", "../up"), "version"),
        (edit("shards.1.name", "../../etc/passwd"), "shards.1.name"),
        (edit("shards.1.sha256", "beef"), "shards.1.sha256"),
        (edit("shards.1.samples", 99), "totals"),
        (edit("shards.0.bytes", -1), "shards.0.bytes"),
        (edit("latent_shapes", [[16, 0, 8]]), "latent_shapes.0.1"),
        (edit("accounts.captions.read", 41), "accounts.captions"),
        (edit("accounts.captions", {"read": 32, "kept": 32, "refused": {}}), "accounts"),
        (edit("inputs.0.size", "5"), "inputs.0.size"),
    ],
)
def test_what_does_not_hold_is_refused(
    manifest: Manifest, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    tree = copy.deepcopy(manifest.to_json())
    change(tree)
    with pytest.raises(ManifestError, match=told):
        Manifest.from_json(tree)


def test_a_manifest_that_does_not_add_up_is_not_written(manifest: Manifest) -> None:
    with pytest.raises(ManifestError, match="totals"):
        dataclasses.replace(manifest, totals=Totals(1, 2, 3, 4)).to_bytes()


def test_found_by_file_version_and_latest(tmp_path: Path, manifest: Manifest) -> None:
    version = tmp_path / "shapes" / manifest.version
    version.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="neither manifest.json nor latest"):
        Manifest.load(str(tmp_path / "shapes"))
    for name, data in manifest.files().items():
        (version / name).write_bytes(data)
    (tmp_path / "shapes" / "latest").write_text(manifest.version + "\n")
    for url in (version / "manifest.json", version, tmp_path / "shapes", f"file://{tmp_path}/shapes/"):
        loaded = Manifest.load(str(url))
        assert loaded == manifest
        assert loaded.shard_url(loaded.shards[2]) == f"{loaded.base}/shard-000002.tar"
        assert loaded.base.endswith(manifest.version)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b'{"schema": 1')
    with pytest.raises(ManifestError, match=r"manifest\.json: "):
        Manifest.load(str(tmp_path))
