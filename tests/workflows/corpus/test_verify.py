"""Verify finds every byte that was changed, every file that is missing, and what no digest tells."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oneflow_core.data import shard as shards
from oneflow_core.data.index import ShardIndex
from oneflow_core.data.manifest import Manifest, ShardEntry
from oneflow_core.data.reader import index_url
from oneflow_core.data.shard import Sample
from oneflow_core.data.table import Table
from oneflow_core.document import Document, ImageSegment, Segment, TextSegment
from tests.workflows.corpus.written import write_version
from workflows.cli import main
from workflows.corpus import verify as job
from workflows.corpus.verify import Unsound, verify
from workflows.errors import OneFlowError

LATENT = (16, 2, 2)
TRIED = 40


def sample(number: int, images: int = 1) -> Sample:
    rng = np.random.default_rng(number)
    segments: list[Segment] = [TextSegment(f"text {number}")]
    segments += [ImageSegment(hashlib.sha256(bytes([number, i])).hexdigest(), 16, 16) for i in range(images)]
    latents = tuple(rng.standard_normal(LATENT).astype(np.float16) for _ in range(images))
    return Sample(Document(f"doc-{number}", "s", "MIT", tuple(segments)), latents)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three documents in two shards, with a pointer."""
    write_version(tmp_path / "c" / "v1", [sample(n) for n in range(3)], 2, parts=["latents/codec@0/16px/p"])
    (tmp_path / "c" / "latest").write_text("v1\n")
    return tmp_path / "c"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.corpus.progress.Progress._say", lambda self, text: None)


def places(size: int) -> list[int]:
    """The first and last byte and a seeded sample of the others; with ONEFLOW_EVERY_BYTE set (minutes), every byte."""
    if os.environ.get("ONEFLOW_EVERY_BYTE") or size < TRIED:
        return list(range(size))
    return [0, size - 1, *random.Random(0).sample(range(1, size - 1), TRIED)]


def test_any_byte_that_is_changed_is_found(corpus: Path) -> None:
    assert verify(str(corpus), deep=True).samples == verify(str(corpus)).samples == 3
    files = [p for p in corpus.rglob("*") if p.is_file()]
    assert len(files) == 1 + 4 + 3 + 1
    tried = 0
    for path in files:
        data = path.read_bytes()
        for place in places(len(data)):
            tried += 1
            changed = bytearray(data)
            changed[place] ^= 1 << (place % 8)
            path.write_bytes(changed)
            with pytest.raises(Unsound):
                verify(str(corpus))
        path.write_bytes(data)
    assert tried > 8 * TRIED and verify(str(corpus)).samples == 3


@pytest.mark.parametrize("bit", range(8))
def test_any_bit_of_the_pointer(corpus: Path, bit: int) -> None:
    for place in range(3):
        data = bytearray(b"v1\n")
        data[place] ^= 1 << bit
        (corpus / "latest").write_bytes(data)
        with pytest.raises(Unsound):
            verify(str(corpus))


def test_every_missing_file_is_found_and_strangers_are_told(corpus: Path) -> None:
    for path in sorted((corpus / "v1").iterdir()):
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(Unsound, match=r"not there|nothing is there"):
            verify(str(corpus))
        path.write_bytes(data)
    (corpus / "v1" / "shard-000002.tar").write_bytes(b"")
    (corpus / "v1" / ".manifest.json.0123").write_bytes(b"")
    report = verify(str(corpus))
    assert report.strangers == (".manifest.json.0123", "shard-000002.tar")
    assert report.to_json()["strangers"] == list(report.strangers) and report.mb_s > 0


def test_a_pointer_to_another_place(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus / "v1", corpus / "v2")
    (corpus / "latest").write_text("v2\n")
    with pytest.raises(Unsound, match="names v2, where the manifest of v1 lies"):
        verify(str(corpus))
    assert verify(str(corpus / "v2")).samples == 3, "a copy that nobody points at is a copy"
    with pytest.raises(OneFlowError, match="neither manifest.json nor latest is there") as none:
        verify(str(tmp_path / "none"))
    assert not isinstance(none.value, Unsound)


def test_all_problems_are_in_the_json(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (corpus / "v1").glob("shard-*"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SystemExit) as ended:
        main(["corpus", "verify", str(corpus), "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert ended.value.code == 3 and not told["ok"]
    assert [p.partition(":")[0] for p in told["problems"]] == ["shard-000000.tar", "shard-000001.tar"]


def rewritten(corpus: Path, spoil: Callable[[ShardIndex, bytes], tuple[ShardIndex, bytes]]) -> None:
    """The first shard is changed, and every digest with it, so that only a look into the samples can tell."""
    base = corpus / "v1"
    manifest = Manifest.load(str(base))
    entry = manifest.shards[0]
    tar = base / entry.name
    index_path = Path(index_url(str(tar)))
    index, data = spoil(ShardIndex.from_bytes(index_path.read_bytes()), tar.read_bytes())
    tar.write_bytes(data)
    index_path.write_bytes(index.to_bytes())
    digests = (hashlib.sha256(data).hexdigest(), hashlib.sha256(index.to_bytes()).hexdigest())
    told = dataclasses.replace(entry, bytes=len(data), sha256=digests[0], index_sha256=digests[1])
    entries = [told, *manifest.shards[1:]]
    size = sum(e.bytes for e in entries)
    changed = dataclasses.replace(
        manifest,
        shards=Table.of(ShardEntry, entries),
        totals=dataclasses.replace(manifest.totals, bytes=size),
    )
    for name, content in changed.files().items():
        (base / name).write_bytes(content)
    assert verify(str(base)).samples == 3, "no digest tells"


def unchecked(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> tuple[ShardIndex, bytes]:
    """A shard that a writer without checks would have written."""
    with monkeypatch.context() as patched:
        patched.setattr(shards, "_check", lambda sample: None)
        written = shards.write_shard(samples)
    return written.index, written.data


@pytest.mark.parametrize(
    ("spoiled", "told"),
    [
        (lambda s: dataclasses.replace(s, latents=()), "1 images, but 0 latents"),
        (lambda s: dataclasses.replace(s, latents=s.latents * 2), "1 images, but 2 latents"),
        (
            lambda s: dataclasses.replace(s, features=(np.zeros((4, 8), np.float16),)),
            "features 0 is .*not meant",
        ),
        (
            lambda s: dataclasses.replace(s, features=(np.zeros((4, 8), np.float16),) * 2),
            "1 latents and|features",
        ),
        (
            lambda s: dataclasses.replace(s, latents=(np.zeros((16, 4, 4), np.float16),)),
            "is .16, 4, 4., not .16, 2, 2.",
        ),
        (lambda s: dataclasses.replace(s, latents=(s.latents[0] * np.float16(np.inf),)), "not finite"),
        (lambda s: dataclasses.replace(s, latents=(s.latents[0].astype(np.float32),)), "float32"),
    ],
)
def test_what_only_deep_can_tell(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, spoiled: Callable[[Sample], Sample], told: str
) -> None:
    bad = [spoiled(sample(0)), spoiled(sample(1))]
    rewritten(corpus, lambda index, data: unchecked(bad, monkeypatch))
    with pytest.raises(Unsound, match=told) as caught:
        verify(str(corpus), deep=True)
    if len(bad[0].features) < 2:
        assert {"doc-0", "doc-1"} <= {p.split(": ")[1] for p in caught.value.problems[:2]}, "each is told"


def test_a_key_that_is_not_its_document_s(corpus: Path) -> None:
    rewritten(corpus, lambda index, data: (ShardIndex.of_tar(renamed(data)), renamed(data)))
    with pytest.raises(Unsound, match="holds document 'doc-0', whose key is another"):
        verify(str(corpus), deep=True)


def renamed(data: bytes) -> bytes:
    """doc-0 stands under another key; the headers' sums are made right again."""
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=stream, mode="w") as new:
        for info in old.getmembers():
            content = old.extractfile(info)
            info.name = info.name.replace("doc-0", "doc-9")
            new.addfile(info, content)
    return stream.getvalue()


def test_a_codec_that_its_parts_are_not_of(corpus: Path) -> None:
    manifest = Manifest.load(str(corpus))
    for name, data in dataclasses.replace(manifest, codec="codec@1").files().items():
        (corpus / "v1" / name).write_bytes(data)
    with pytest.raises(Unsound, match="made of latents by codec@0, and says that they are by codec@1"):
        verify(str(corpus))


def test_memory_is_bounded_by_blocks(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain verify never has a shard whole: the largest read is a block."""
    reads: list[int] = []
    whole = job.read_bytes

    def watched(url: str) -> bytes:
        data = whole(url)
        reads.append(len(data))
        return data

    monkeypatch.setattr("workflows.corpus.shard_check.read_bytes", watched)
    monkeypatch.setattr("workflows.corpus.shard_check.BLOCK_BYTES", 512)
    verify(str(corpus))
    assert len(reads) == 2 and max(reads) < min(p.stat().st_size for p in corpus.rglob("*.tar"))
