"""`oneflow corpus synth`: what it writes reads as anybody's webdataset and JSONL, and says what the pictures show."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from PIL import Image

from oneflow_core.shapes import Scene, answer, follows, read, score_caption, split_of
from workflows.corpus.synth import PART_DOCUMENTS, synthesise
from workflows.errors import UsageError


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def _images(path: Path) -> dict[str, np.ndarray]:
    with tarfile.open(path) as archive:
        return {m.name: _pixels(archive.extractfile(m).read()) for m in archive}  # type: ignore[union-attr]


def test_captions_are_a_webdataset(tmp_path: Path) -> None:
    report = synthesise(str(tmp_path), 120, 7)
    samples = list(webdataset.WebDataset(str(tmp_path / "captions-00000.tar"), shardshuffle=False))
    assert len(samples) == 120 and report.documents == 120 and report.wrote
    named = 0
    for sample in samples:
        about = json.loads(sample["json"])
        scene = read(_pixels(sample["png"]))
        assert str(scene) == about["scene"] and scene is not None and split_of(scene) == "train"
        assert about["sha256"] == hashlib.sha256(sample["png"]).hexdigest()
        assert (
            about["caption"] == sample["txt"].decode()
            and about["licence"]
            and about["key"] == sample["__key__"]
        )
        named += score_caption(about["caption"], scene).exact
    assert named > 100


def test_questions_point_to_their_pictures(tmp_path: Path) -> None:
    synthesise(str(tmp_path), 80, 7, "vqa")
    images = _images(tmp_path / "vqa-00000.tar")
    rows = [json.loads(line) for line in (tmp_path / "vqa-00000.jsonl").read_text().splitlines()]
    assert len(rows) == 80 == len(images)
    for row in rows:
        scene = read(images[row["image"]])
        assert scene is not None and answer(row["question"], scene) == row["answer"]


def test_larger_pictures_show_the_same_scenes_under_the_same_words(tmp_path: Path) -> None:
    synthesise(str(tmp_path / "small"), 10, 7)
    synthesise(str(tmp_path / "large"), 10, 7, size=128)
    small, large = (
        list(webdataset.WebDataset(str(tmp_path / size / "captions-00000.tar"), shardshuffle=False))
        for size in ("small", "large")
    )
    assert [s["txt"] for s in small] == [s["txt"] for s in large]
    for sample in large:
        about, pixels = json.loads(sample["json"]), _pixels(sample["png"])
        assert pixels.shape == (128, 128, 3) and about["width"] == about["height"] == 128
        shrunk = pixels.reshape(64, 2, 64, 2, 3).mean((1, 3)).round().astype(np.uint8)
        assert str(read(shrunk)) == about["scene"]
    with pytest.raises(UsageError, match="size=128"):
        synthesise(str(tmp_path / "large"), 10, 7)
    with pytest.raises(UsageError, match="no multiple of 64"):
        synthesise(str(tmp_path / "odd"), 10, 7, size=100)


def test_stories_follow(tmp_path: Path) -> None:
    synthesise(str(tmp_path), 40, 7, "stories")
    images = _images(tmp_path / "stories-00000.tar")
    rows = [json.loads(line) for line in (tmp_path / "stories-00000.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    for row in rows:
        texts = [s["text"] for s in row["segments"] if "text" in s]
        pictures = [images[s["image"]] for s in row["segments"] if "image" in s]
        assert 2 <= len(pictures) <= 4 and all(follows(texts, pictures))


@pytest.mark.parametrize("kind", ["captions", "vqa", "stories"])
def test_heldout_scenes_are_never_of_training(tmp_path: Path, kind: str) -> None:
    synthesise(str(tmp_path), 60, 0, kind, "heldout")  # type: ignore[arg-type]
    if kind == "captions":
        samples = webdataset.WebDataset(str(tmp_path / "captions-00000.tar"), shardshuffle=False)
        rows = [json.loads(sample["json"]) for sample in samples]
    else:
        rows = [json.loads(line) for line in (tmp_path / f"{kind}-00000.jsonl").read_text().splitlines()]
    scenes = [Scene.parse(text) for row in rows for text in row.get("scenes", [row.get("scene")])]
    assert {split_of(scene) for scene in scenes} == {"heldout_random", "heldout_pair", "heldout_triple"}


@pytest.mark.parametrize("kind", ["captions", "vqa", "stories"])
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    one, two, other = (synthesise(str(tmp_path / d), 30, s, kind) for d, s in (("a", 1), ("b", 1), ("c", 2)))  # type: ignore[arg-type]
    assert one.files == two.files and set(one.files.values()).isdisjoint(other.files.values())
    for name, digest in one.files.items():
        assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == digest


def test_parts_hold_a_thousand_and_do_not_depend_on_the_total(tmp_path: Path) -> None:
    seen: list[int] = []
    long = synthesise(str(tmp_path / "a"), PART_DOCUMENTS + 5, 1, progress=seen.append)
    short = synthesise(str(tmp_path / "b"), PART_DOCUMENTS, 1)
    assert list(long.files) == ["captions-00000.tar", "captions-00001.tar"] and seen == [1000, 1005]
    assert long.files["captions-00000.tar"] == short.files["captions-00000.tar"]


def test_a_second_run_finds_it_done(tmp_path: Path) -> None:
    first = synthesise(str(tmp_path), 10, 1)
    stamp = (tmp_path / "captions-00000.tar").stat().st_mtime_ns
    again = synthesise(str(tmp_path), 10, 1)
    assert not again.wrote and again.files == first.files
    assert (tmp_path / "captions-00000.tar").stat().st_mtime_ns == stamp


def test_without_its_manifest_it_is_written_again(tmp_path: Path) -> None:
    first = synthesise(str(tmp_path), 10, 1)
    (tmp_path / "captions.json").unlink()
    (tmp_path / "captions-00000.tar").write_bytes(b"half")
    again = synthesise(str(tmp_path), 10, 1)
    assert again.wrote and again.files == first.files


def test_other_arguments_never_overwrite(tmp_path: Path) -> None:
    synthesise(str(tmp_path), 10, 1)
    with pytest.raises(UsageError, match=r"seed=1 \(asked: 2\)"):
        synthesise(str(tmp_path), 10, 2)


@pytest.mark.parametrize(
    ("documents", "kind", "split"), [(0, "captions", "train"), (5, "x", "train"), (5, "vqa", "x")]
)
def test_bad_arguments_are_refused(tmp_path: Path, documents: int, kind: str, split: str) -> None:
    with pytest.raises(UsageError):
        synthesise(str(tmp_path), documents, 1, kind, split)  # type: ignore[arg-type]


def test_any_filesystem_will_do() -> None:
    report = synthesise("memory://synth-test/corpus", 5, 1)
    data = fsspec.filesystem("memory").cat("/synth-test/corpus/captions-00000.tar")
    assert hashlib.sha256(data).hexdigest() == report.files["captions-00000.tar"]
