"""Shards open in others' readers, each sample as ours gives it (Ray Data: tests/workflows/corpus/test_build.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneflow_core.data.reader import ShardReader, index_url
from oneflow_core.data.shard import Sample, key_of, write_shard
from oneflow_core.document import Document, ImageSegment, Segment, TextSegment


def document(number: int, images: int, meta: Mapping[str, str]) -> Document:
    segments: list[Segment] = [TextSegment(f"caption {number} \u2665", "auto")]
    for i in range(images):
        sha256 = hashlib.sha256(f"{number} {i}".encode()).hexdigest()
        segments.append(ImageSegment(sha256, 640 + number, 480, "target"))
    return Document(f"a/{number}.x", "tests", "CC0-1.0", tuple(segments), meta)


def written(directory: Path, images: Iterable[int]) -> tuple[list[str], dict[str, Sample]]:
    """Two shards with samples of so many images each, and the samples by key."""
    rng, samples = np.random.default_rng(0), []
    for number, count in enumerate(images):
        meta = {"url": f"https://example.org/{number}"}
        latents = tuple(rng.normal(size=(4, 3, 2)).astype(np.float16) for _ in range(count))
        features = tuple(rng.normal(size=(5, 7)).astype(np.float16) for _ in range(count))
        samples.append(Sample(document(number, count, meta), latents, features))
    paths = []
    for number in range(2):
        shard, path = write_shard(samples[number::2]), directory / f"shard-{number:06d}.tar"
        path.write_bytes(shard.data)
        Path(index_url(str(path))).write_bytes(shard.index.to_bytes())
        paths.append(str(path))
    return paths, {key_of(sample.document.doc_id): sample for sample in samples}


def check(rows: list[dict[str, Any]], samples: Mapping[str, Sample]) -> None:
    """Every sample once, its document and arrays equal; absent fields may be there as None."""
    assert sorted(row["__key__"].rsplit("/")[-1] for row in rows) == sorted(samples)
    for row in rows:
        sample = samples[row["__key__"].rsplit("/")[-1]]
        assert bare(row["json"]) == sample.document.to_json()
        for kind, arrays in (("latent", sample.latents), ("features", sample.features)):
            for i, array in enumerate(arrays):
                np.testing.assert_array_equal(np.array(row[f"{i}.{kind}.npy"], np.float16), array)


def bare(tree: Any) -> Any:
    if isinstance(tree, list):
        return [bare(item) for item in tree]
    return {k: bare(v) for k, v in tree.items() if v is not None} if isinstance(tree, dict) else tree


def test_our_reader(tmp_path: Path) -> None:
    paths, samples = written(tmp_path, [1, 0, 2, 3])
    found = [sample for path in paths for sample in ShardReader(path)]
    rows = [
        {"__key__": key_of(s.document.doc_id), "json": s.document.to_json()}
        | {f"{i}.latent.npy": a for i, a in enumerate(s.latents)}
        | {f"{i}.features.npy": a for i, a in enumerate(s.features)}
        for s in found
    ]
    check(rows, samples)


def test_webdataset(tmp_path: Path) -> None:
    import webdataset

    paths, samples = written(tmp_path, [1, 0, 2, 3])
    check(list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode()), samples)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("images", [1, 2])
def test_hugging_face_datasets(tmp_path: Path, streaming: bool, images: int) -> None:
    datasets = pytest.importorskip("datasets")
    paths, samples = written(tmp_path, [images] * 16)
    found = datasets.load_dataset(
        "webdataset",
        data_files={"train": paths},
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path / "cache"),
    )
    check(list(found), samples)


def test_hugging_face_datasets_want_the_same_members_in_every_sample(tmp_path: Path) -> None:
    """Their reader's limit, told in docs/data-engineer.md: of a corpus of mixed documents use another one."""
    datasets = pytest.importorskip("datasets")
    paths, _ = written(tmp_path, [1, 1, 2, 3])
    with pytest.raises(ValueError, match="don't share the same prefix or the same types"):
        datasets.load_dataset("webdataset", data_files={"train": paths}, split="train", streaming=True)
