"""Shards: fixed bytes, random access, digests, and readers that are not ours."""

import hashlib
import io
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from oneflow_core.data.index import ShardError, ShardIndex
from oneflow_core.data.reader import ShardReader, index_url
from oneflow_core.data.shard import Sample, ShardBytes, key_of, write_shard
from oneflow_core.document import Document, ImageSegment, TextSegment


def make_sample(name: str, text: str, images: int, features: bool = True, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    sha = [hashlib.sha256(f"{name}{i}".encode()).hexdigest() for i in range(images)]
    segments = (TextSegment(text), *(ImageSegment(s, 64, 48) for s in sha))
    latents = tuple(rng.normal(size=(4, 2, 2)).astype(np.float16) for _ in sha)
    extra = tuple(rng.normal(size=(3, 5)).astype(np.float16) for _ in sha) if features else ()
    return Sample(Document(name, "tests", "CC0", segments, {"n": "1"}), latents, extra)


GOLDEN_INDEX = "8d83dbdceeee2329e6a9315d890e192358623aaa4fa63808a2b587aaacda2747"


def equal(a: Sample, b: Sample) -> bool:
    return a.document == b.document and all(
        len(x) == len(y)
        and all(p.dtype == q.dtype and np.array_equal(p, q) for p, q in zip(x, y, strict=True))
        for x, y in ((a.latents, b.latents), (a.features, b.features))
    )


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    ids = ["a/00001/x.y", "plain", "ünïcode é", "z" * 300, "text-only"]
    return [make_sample(name, f"text of {name} ♥", i % 3, i % 2 == 0, i) for i, name in enumerate(ids)]


@pytest.fixture(scope="module")
def shard(samples: list[Sample]) -> ShardBytes:
    return write_shard(samples)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=120), st.text(max_size=200), st.integers(0, 3), st.booleans()),
        max_size=4,
        unique_by=lambda row: row[0],
    )
)
def test_what_is_written_is_read_back(rows: list[tuple[str, str, int, bool]]) -> None:
    written = [make_sample(*row, seed=i) for i, row in enumerate(rows)]
    shard = write_shard(written)
    assert ShardIndex.from_bytes(shard.index.to_bytes()) == shard.index
    assert ShardIndex.of_tar(shard.data) == shard.index
    with ShardReader(shard.data, shard.index) as reader:
        assert len(reader) == len(written)
        for i in reversed(range(len(written))):
            assert equal(reader[i], written[i])


def test_bytes_are_fixed(shard: ShardBytes) -> None:
    """SHARD FORMAT: a change of this digest breaks stored corpora; bump the schema versions with it."""
    golden = write_shard([make_sample("golden", "a red circle", 0), make_sample("a.b", "x", 0)])
    assert golden.sha256 == "2a154788e72e9e2d102370041af216e134ff9620fd16a3cc40d1b565ed2659f8"
    assert hashlib.sha256(golden.index.to_bytes()).hexdigest() == GOLDEN_INDEX


def test_other_programs_read_the_index(shard: ShardBytes) -> None:
    rows = pa.ipc.open_file(shard.index.to_bytes()).read_all().to_pylist()
    with tarfile.open(fileobj=io.BytesIO(shard.data)) as tar:
        for row in rows:
            for member in row["members"]:
                info = tar.getmember(f"{row['key']}.{member['name']}")
                assert (info.offset_data, info.size) == (member["offset"], member["size"])
                content = shard.data[info.offset_data : info.offset_data + info.size]
                assert xxhash.xxh3_128(content).digest() == member["digest"]
        assert sum(len(row["members"]) for row in rows) == len(tar.getmembers())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_index_is_refused_or_is_another_one(shard: ShardBytes, data: st.DataObject) -> None:
    """It never crashes; that it is the right one is said by its digest in the manifest."""
    broken = bytearray(shard.index.to_bytes())
    for place in data.draw(st.lists(st.integers(0, len(broken) - 1), min_size=1, max_size=4)):
        broken[place] ^= data.draw(st.integers(1, 255))
    with suppress(ShardError):
        list(ShardIndex.from_bytes(bytes(broken)).samples)


def test_arrays_of_a_file_are_views_that_outlive_their_reader(
    tmp_path: Path, shard: ShardBytes, samples: list[Sample]
) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(shard.data)
    with ShardReader(path, shard.index) as reader:
        sample = reader[1]
    assert not sample.latents[0].flags.owndata and not sample.latents[0].flags.writeable
    path.unlink()
    assert equal(sample, samples[1])


def test_members_are_ordinary_files_of_nobody(shard: ShardBytes, samples: list[Sample]) -> None:
    with tarfile.open(fileobj=io.BytesIO(shard.data)) as tar:
        infos = tar.getmembers()
    assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in infos} == {(0, 0, 0, "", "", 0o644)}
    key = key_of(samples[2].document.doc_id)
    names = [i.name for i in infos if i.name.startswith(key)]
    assert names == [
        f"{key}.json",
        f"{key}.0.latent.npy",
        f"{key}.0.features.npy",
        f"{key}.1.latent.npy",
        f"{key}.1.features.npy",
    ]


@given(st.text(max_size=200), st.text(max_size=200))
def test_keys_are_plain_and_tell_documents_apart(a: str, b: str) -> None:
    assert key_of(a) and not set(key_of(a)) & set("./ ") and len(key_of(a)) <= 80
    assert (key_of(a) == key_of(b)) == (a == b)


def test_webdataset_opens_it(tmp_path: Path, shard: ShardBytes, samples: list[Sample]) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "shard-000000.tar"
    path.write_bytes(shard.data)
    found = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [row["__key__"] for row in found] == [key_of(s.document.doc_id) for s in samples]
    for row, sample in zip(found, samples, strict=True):
        assert row["json"] == sample.document.to_json()
        for i, latent in enumerate(sample.latents):
            np.testing.assert_array_equal(row[f"{i}.latent.npy"], latent)


def test_reads_from_path_url_and_rebuilt_index(
    tmp_path: Path, shard: ShardBytes, samples: list[Sample]
) -> None:
    import fsspec

    path = tmp_path / "shard-000000.tar"
    path.write_bytes(shard.data)
    remote = fsspec.filesystem("memory")
    remote.pipe_file("/t/shard-000000.tar", shard.data)
    for source in (path, str(path), f"file://{path}", "memory://t/shard-000000.tar"):
        with ShardReader(source) as reader:  # no index beside it: rebuilt
            assert equal(reader[3], samples[3])
    Path(index_url(str(path))).write_bytes(shard.index.to_bytes())
    with ShardReader(path) as reader:
        assert all(equal(a, b) for a, b in zip(reader, samples, strict=True))
    held = reader.index
    assert held == shard.index


def test_every_flipped_byte_of_a_member_is_noticed(shard: ShardBytes) -> None:
    for number, entry in enumerate(shard.index.samples):
        for member in entry.members:
            broken = bytearray(shard.data)
            broken[member.offset + member.size // 2] ^= 1
            with pytest.raises(ShardError, match="digest"):
                ShardReader(bytes(broken), shard.index)[number]


def test_cut_short_or_foreign_tars_are_refused(shard: ShardBytes, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="its index is of"):
        ShardReader(shard.data[:-512], shard.index)
    with pytest.raises(ShardError, match="not a whole tar|ends within"):
        ShardIndex.of_tar(shard.data[:2000])
    with pytest.raises(ShardError, match="not a whole tar"):
        ShardIndex.of_tar(b"no tar at all" * 100)
    with pytest.raises(ShardError, match="schema 1 is JSON from before; build the corpus again"):
        ShardIndex.from_bytes(b'{"schema": 1}')
    for data in (b"", b"ARROW1", shard.index.to_bytes()[:-9], shard.data):
        with pytest.raises(ShardError, match="not a shard index"):
            ShardIndex.from_bytes(data)
    with pytest.raises(FileNotFoundError):
        ShardReader(tmp_path / "nothing.tar")


def foreign(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def npy(array: np.ndarray, pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=pickle)
    return stream.getvalue()


def test_pickled_arrays_are_never_opened() -> None:
    document = (
        b'{"schema":1,"doc_id":"k","source":"s","licence":"l","meta":{},"segments":[{"type":"image",'
        b'"sha256":"0","width":1,"height":1,"role":"auto"}]}'
    )
    evil = npy(np.array([{"a": 1}], dtype=object), pickle=True)
    with pytest.raises(ShardError, match="no plain .npy array"):
        ShardReader(foreign([("k.json", document), ("k.0.latent.npy", evil)]))[0]
    wrong = npy(np.zeros((1, 1, 1), np.float32))
    with pytest.raises(ShardError, match="float32"):
        ShardReader(foreign([("k.json", document), ("k.0.latent.npy", wrong)]))[0]
    with pytest.raises(ShardError, match="1 images, but 0 latents"):
        ShardReader(foreign([("k.json", document)]))[0]
    with pytest.raises(ShardError, match="no such member"):
        ShardReader(foreign([("k.json", document), ("k.cls", b"1")]))[0]
    with pytest.raises(ShardError, match="no .json member"):
        ShardReader(foreign([("k.0.latent.npy", npy(np.zeros((1, 1, 1), np.float16)))]))[0]
    with pytest.raises(ShardError, match="two places"):
        ShardReader(foreign([("k.json", document), ("l.json", b"{}"), ("k.cls", b"")]))


def test_samples_that_do_not_fit_are_refused() -> None:
    good = make_sample("a", "x", 1)
    with pytest.raises(ShardError, match="twice"):
        write_shard([good, good])
    with pytest.raises(ShardError, match="1 images, but 0 latents"):
        write_shard([Sample(good.document, ())])
    with pytest.raises(ShardError, match="not float16 of rank 3"):
        write_shard([Sample(good.document, (np.zeros((2, 2), np.float16),))])
