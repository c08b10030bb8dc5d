"""The whole line on Ray: real sources, determinism, a second run, a kill, and what verify says of damage."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from oneflow_core.data.manifest import Manifest
from oneflow_core.data.reader import ShardReader, index_url
from oneflow_core.data.shard import Sample
from tests.workflows.corpus.inputs import corpus, jsonl, pairs, png, tar
from tests.workflows.corpus.test_encode import codec
from tests.workflows.corpus.test_refusals import broken
from workflows.corpus import build
from workflows.corpus import encode as encode_job
from workflows.corpus import shard as shard_job
from workflows.corpus.config import CorpusConfig
from workflows.corpus.inspection import inspect, render
from workflows.corpus.quarantine import Wanted, summary
from workflows.corpus.retry import retry
from workflows.corpus.tally import tallied
from workflows.corpus.verify import verify
from workflows.errors import OneFlowError

__all__ = ["codec"]
pytestmark = pytest.mark.usefixtures("local_ray")
TARGET = 50_000
SMALL = {"understanding": None, "part_images": 16, "batch_size": 8, "actors": 1}


def mixed(root: Path, raw: Path, **rest: object) -> CorpusConfig:
    """Captions with two bad rows, and questions about some of the same pictures; from `raw`, into `root`."""
    if not raw.exists():
        tar(raw / "a.tar", [*pairs(0, 20), ("bad.png", b"bad"), ("bad.txt", b"x"), ("none.txt", b"y")])
        tar(raw / "b.tar", pairs(20, 20))
        rows = [{"id": i, "image": f"{i}.png", "question": "which?", "answer": str(i)} for i in range(15)]
        jsonl(raw / "q.jsonl", rows)
        tar(raw / "q.tar", [(f"{i}.png", png(i + 10)) for i in range(15)])
    captions = {"name": "captions", "format": "webdataset", "urls": [f"{raw}/{{a,b}}.tar"]}
    questions = {"name": "vqa", "format": "jsonl", "urls": [f"{raw}/*.jsonl"], "licence": "MIT"}
    settings = {"encode": SMALL, "shard": {"target_bytes": TARGET, "minimum": 3}, **rest}
    return corpus(root, captions, questions, **settings)


def samples_of(manifest: Manifest) -> list[Sample]:
    found: list[Sample] = []
    for shard in manifest.shards:
        with ShardReader(manifest.shard_url(shard)) as reader:
            found += list(reader)
    return found


def tree(root: Path, *names: str) -> dict[str, bytes]:
    """Every file below, by its path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for name in names
        for path in sorted((root / name).rglob("*"))
        if path.is_file()
    }


def built(report: build.BuildReport) -> Manifest:
    assert report.made and report.manifest is not None
    return report.manifest


@dataclass(frozen=True)
class Whole:
    """A corpus that was built in one go from `raw`."""

    folder: Path
    raw: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def whole(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("corpus")
    root, raw = folder / "whole", folder / "raw"
    return Whole(root, raw, built(build.run(mixed(root, raw))))


def test_what_was_built(whole: Whole) -> None:
    manifest = whole.manifest
    assert manifest.totals.samples == 55 and manifest.totals.images == 55
    assert manifest.licences == {"CC0-1.0": 40, "MIT": 15}
    assert manifest.accounts["captions"].refused == {"image unreadable": 1, "image missing": 1}
    assert manifest.latent_shape == (16, 8, 8) and manifest.codec and manifest.encoder is None
    assert len(manifest.shards) == round(manifest.totals.bytes / TARGET)
    samples = samples_of(manifest)
    ids = [sample.document.doc_id for sample in samples]
    assert len(set(ids)) == 55 and ids != sorted(ids)
    latents = {s.document.images[0].sha256: s.latents[0].tobytes() for s in samples}
    assert len(latents) == 40, "a picture that two documents use is encoded once"
    assert verify(manifest.base, deep=True).samples == 55
    values = np.concatenate([np.ravel(latent) for s in samples for latent in s.latents]).astype(np.float64)
    found = inspect(manifest.base)
    assert found.latent_std == pytest.approx(values.std(), rel=0.05)
    shown = render(found)
    assert f"deviation {found.latent_std:.2f}" in shown
    assert "55 documents" in shown and "image unreadable: 1" in shown and "MIT 15" in shown


def test_other_people_s_readers(whole: Whole) -> None:
    import ray.data
    import webdataset

    samples = {s.document.doc_id: s for s in samples_of(whole.manifest)}
    urls = [whole.manifest.shard_url(shard) for shard in whole.manifest.shards]
    plain = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    rows = ray.data.read_webdataset(urls).take_all()
    for found in (plain, rows):
        assert sorted(row["json"]["doc_id"] for row in found) == sorted(samples)
        for row in found:
            sample = samples[row["json"]["doc_id"]]
            # Ray Data makes one struct of all segments, absent fields None.
            segments = [{k: v for k, v in part.items() if v is not None} for part in row["json"]["segments"]]
            assert segments == sample.document.to_json()["segments"]
            assert (row["0.latent.npy"] == sample.latents[0]).all()


def test_a_second_run_has_nothing_to_do(whole: Whole) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")}
    begin = time.monotonic()
    report = build.run(mixed(whole.folder, whole.raw))
    assert not report.made and report.manifest == whole.manifest
    assert time.monotonic() - begin < 60
    assert {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")} == before
    lost = Path(index_url(whole.manifest.shard_url(whole.manifest.shards[0])))
    data = lost.read_bytes()
    lost.unlink()
    assert build.finished(mixed(whole.folder, whole.raw)) is None
    lost.write_bytes(data)
    assert build.finished(mixed(whole.folder, whole.raw, seed=1)) is None


@pytest.mark.timeout(1800)
def test_killed_in_the_middle(whole: Whole, tmp_path: Path) -> None:
    """A build killed without warning, then run again with two encoders: the bytes of the one done in one go."""
    config = mixed(tmp_path, whole.raw, encode={**SMALL, "actors": 2})
    file = tmp_path.with_suffix(".yaml")
    file.write_text(json.dumps(config.model_dump(mode="json")))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    code = "import sys; from workflows.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "corpus", "build", str(file)]
    said = tmp_path.with_suffix(".log")
    with said.open("w") as stderr:
        process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=stderr)
    try:
        wait_for(process, tmp_path / "latents", said)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "shards" / "test" / "latest").exists()
    again = built(build.run(config))
    assert replace(again, created_by=whole.manifest.created_by) == whole.manifest
    kinds = ("documents", "latents", "quarantine", "shards")
    found, meant = tree(tmp_path, *kinds), tree(whole.folder, *kinds)
    (manifest,) = (name for name in meant if name.endswith("/manifest.json"))
    del (
        found[manifest],
        meant[manifest],
    )  # it names the commit that made it, and somebody may commit meanwhile
    assert found == meant


def wait_for(process: "subprocess.Popen[bytes]", folder: Path, said: Path) -> None:
    """Until the first part is in `folder`; what the process wrote is in `said`."""
    deadline = time.monotonic() + 600
    while not any(folder.rglob("part-*.parquet")):
        assert process.poll() is None, f"the build ended before it was killed: {said.read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"nothing in {folder}"
        time.sleep(0.02)


def test_more_files_and_another_seed(whole: Whole, tmp_path: Path) -> None:
    """Only the new pictures are encoded, what is there twice is told; another order; the old version stays whole."""
    shutil.copytree(whole.folder, tmp_path / "root")
    tar(tmp_path / "raw" / "c.tar", pairs(35, 10))
    captions = [f"{whole.raw}/{{a,b}}.tar", f"{tmp_path}/raw/c.tar"]
    source = {"name": "captions", "format": "webdataset", "urls": captions}
    config = corpus(tmp_path / "root", source, encode=SMALL, seed=1)
    report = build.run(config)
    manifest = built(report)
    assert manifest.totals.samples == 45 and manifest.version != whole.manifest.version
    assert manifest.accounts["captions"].refused["duplicate"] == 5
    assert report.reused["files"] == 2 and report.reused["documents"] == 40
    assert report.to_json()["ingested"]["captions"]["read"] == 52
    assert len(tree(tmp_path / "root", "latents")) == len(tree(whole.folder, "latents")) + 1
    order = [s.document.doc_id for s in samples_of(manifest) if "/c/" not in s.document.doc_id]
    before = [s.document.doc_id for s in samples_of(whole.manifest) if s.document.source == "captions"]
    assert sorted(order) == sorted(before) and order != before
    old = tree(whole.folder / "shards" / "test" / whole.manifest.version, ".")
    assert tree(tmp_path / "root" / "shards" / "test" / whole.manifest.version, ".") == old


def test_a_source_of_which_nothing_is_kept(tmp_path: Path) -> None:
    tar(tmp_path / "raw" / "a.tar", [("a.png", b"x"), ("a.txt", b"a")])
    with pytest.raises(OneFlowError, match="source captions: none of its 1 rows could be kept"):
        build.run(corpus(tmp_path, encode=SMALL))


def test_an_error_in_a_task_is_told_as_such(tmp_path: Path) -> None:
    tar(tmp_path / "raw" / "a.tar", pairs(0, 1))
    config = corpus(tmp_path, encode={"codec": {"name": str(tmp_path / "no-codec")}})
    with pytest.raises(OneFlowError, match=r"encode\.codec .*no-codec"):
        build.run(config)


def test_the_partitions_of_the_shuffle_change_no_byte(whole: Whole, tmp_path: Path) -> None:
    for partitions in (1, 3):
        root = tmp_path / str(partitions)
        shutil.copytree(whole.folder, root, ignore=shutil.ignore_patterns("shards"))
        shard_job.run(mixed(root, whole.raw), partitions=partitions)
        assert tree(root, "shards") == tree(whole.folder, "shards")


def test_shards_of_a_run_that_did_not_finish_are_not_written_again(whole: Whole, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(whole.folder, root)
    base = root / "shards" / "test" / whole.manifest.version
    for lost in (base / "manifest.json", base.parent / "latest", base / "shard-000001.index.arrow"):
        lost.unlink()
    cut = base / "shard-000002.tar"
    cut.write_bytes(cut.read_bytes()[:20_000])
    before = {path: path.stat().st_mtime_ns for path in base.glob("shard-*.tar")}
    report = build.run(mixed(root, whole.raw))
    count = len(whole.manifest.shards)
    assert report.done == {"files": 0, "documents": 0, "images": 0, "shards": 2}
    assert report.reused == {"files": 3, "documents": 55, "images": 40, "shards": count - 2}
    assert "written 2 shards" in report.what() and "encoded 0 images, 40 reused" in report.what()
    assert tree(root, "shards") == tree(whole.folder, "shards")
    written = {path.name for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert written == {"shard-000001.tar", "shard-000002.tar"}


def test_an_encoder_that_is_killed_is_started_again(whole: Whole, tmp_path: Path) -> None:
    """Ray starts another one, which does the chunk again: the bytes of a build in which nobody died."""
    import psutil

    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 500
        while not killed and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if not killed and "Encoder" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
            time.sleep(0.02)

    shutil.copytree(whole.folder, tmp_path / "root", ignore=shutil.ignore_patterns("shards", "latents"))
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        built(build.run(mixed(tmp_path / "root", whole.raw)))
    finally:
        killer.join()
    assert killed
    assert tree(tmp_path / "root", "latents", "shards") == tree(whole.folder, "latents", "shards")


def test_images_that_do_not_decode_leave_their_documents_out(
    local_ray: None, tmp_path: Path, codec: str
) -> None:
    """The account closes, what was refused is part of the version, and taking it out of quarantine tries it again."""
    config, units = broken(tmp_path, codec)
    report = encode_job.run(config)
    assert (report.images, report.encoded, report.refused) == (6, 7, 2)
    manifest = Manifest.load(shard_job.run(config).url)
    account = manifest.accounts["captions"]
    assert account.refused["image unreadable"] >= 2
    assert account.read == account.kept + sum(account.refused.values()) and account.kept == 6
    assert verify(manifest.base, deep=True).samples == 6
    (part,) = (part.path for part in manifest.parts if part.path.startswith("quarantine/encode/"))
    assert build.finished(config) == manifest
    (tmp_path / part).unlink()
    assert build.finished(config) is None
    again = encode_job.run(config)
    assert (again.encoded, again.refused, again.reused) == (0, 2, 7)


def test_buckets(tmp_path: Path) -> None:
    """Pictures keep their aspect, about; latents have several shapes, features one; the parts do not mix."""
    sizes = [(64, 64), (200, 100), (100, 220), (90, 60), (60, 90), (640, 60)]
    members = [(f"{i}.png", png(i, size)) for i, size in enumerate(sizes)]
    texts = [(f"{i}.txt", f"{w}x{h}".encode()) for i, (w, h) in enumerate(sizes)]
    tar(tmp_path / "raw" / "a.tar", sorted(members + texts))
    settings = {"encode": {"buckets": {"step": 16, "max_aspect": 2}, "actors": 1}, "shard": {"minimum": 2}}
    manifest = built(build.run(corpus(tmp_path, **settings)))
    assert set(manifest.latent_shapes) == {(16, 8, 8), (16, 6, 10), (16, 10, 6)}
    assert manifest.features_shape is not None and manifest.latent_shape is None
    assert verify(manifest.base, deep=True).samples == len(sizes)
    wide, square, tall = (16, 6, 10), (16, 8, 8), (16, 10, 6)
    meant = dict(zip((f"{w}x{h}" for w, h in sizes), (square, wide, tall, wide, tall, wide), strict=True))
    assert {s.document.texts[0].text: s.latents[0].shape for s in samples_of(manifest)} == meant
    (codec,) = (tmp_path / "latents").iterdir()
    assert [folder.name for folder in codec.iterdir()] == ["64px-b16-a2"]


def test_a_count_from_the_cluster_is_told(local_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    with tallied("shard", 100, "documents", every=0.05, least=0) as tally:
        assert tally is not None
        add = ray.remote(lambda: tally.add(10))
        ray.get([add.remote() for _ in range(10)])
        deadline = time.monotonic() + 300
        told = ""
        while "100 of 100 documents" not in told and time.monotonic() < deadline:
            time.sleep(0.05)
            told += capsys.readouterr().err
    assert "100 of 100 documents" in told
    with tallied("shard", 100, "documents") as little:
        assert little is None


def rewritten(root: Path, *texts: str) -> CorpusConfig:
    """A file of texts beside one that never changes; written again, in place, its listing stays as it was."""
    jsonl(root / "b.jsonl", [{"text": "other"}])
    path = root / "a.jsonl"
    stat = path.stat() if path.exists() else None
    jsonl(path, [{"id": str(i), "text": text} for i, text in enumerate(texts)])
    for file in ("a", "b"):
        os.utime(root / f"{file}.jsonl", ns=(10**18, 10**18))
    assert stat is None or path.stat().st_size == stat.st_size
    source = {"name": "some-texts", "format": "jsonl", "urls": ["${root}/{a,b}.jsonl"]}
    return corpus(root, {**source, "filters": {"deny_text": ["not"]}})


def test_retry_and_the_build_after_it(tmp_path: Path) -> None:
    """A file mended in place keeps its listing; what came out makes another version, and nothing else does."""
    config = rewritten(tmp_path, "one", "    ", "    ", "not!")
    before = build.run(config).manifest
    assert before is not None and before.totals.samples == 2 and build.finished(config) == before
    same = retry(config, Wanted())
    assert (same.files, same.recovered, same.still) == (1, 0, {"text empty": 2, "filtered: text": 1})
    assert build.finished(config) == before, "nothing came out otherwise"
    rewritten(tmp_path, "one", "two ", "    ", "now!")
    assert build.finished(config) == before, "listings do not tell"
    found = retry(config, Wanted(source="some-texts", reason="text"))
    assert (found.files, found.recovered, found.still, found.new) == (1, 2, {"text empty": 1}, 0)
    assert build.finished(config) is None
    report = build.run(config)
    after = report.manifest
    assert after is not None and after.totals.samples == 4 and after.version != before.version
    assert report.reused["files"] == 2 and after.accounts["some-texts"].refused == {"text empty": 1}
    assert summary(str(tmp_path), Wanted()).total() == 1
    assert build.finished(config) == after
    again = retry(config, Wanted(reason="filtered"))
    assert again.files == 0 and build.finished(config) == after
