"""The cache of remote shards: whole files or none, within its limit, whoever shares it and whatever dies."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from oneflow_core.data import remote
from oneflow_core.data.index import ShardError
from oneflow_core.data.manifest import Manifest
from oneflow_core.data.store import ShardStore
from tests.core.data.written import write_corpus

DOCUMENTS = [f"far-{i}" for i in range(48)]
ROOT = Path(__file__).parents[3]
READER = """
import sys, time
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from oneflow_core.data.manifest import Manifest
from oneflow_core.data.store import ShardStore
base, cache, limit, pause = sys.argv[1:]
read = LocalFileSystem.cat_file
def slow(self, path, **span):
    data = read(self, path, **span)
    if path.endswith(".tar") and len(data) in sizes:
        print(path, flush=True)
        time.sleep(float(pause))
    return data
LocalFileSystem.cat_file = slow
manifest = Manifest.load(base)
sizes = {shard.bytes for shard in manifest.shards}
store = ShardStore(manifest, Path(cache), int(limit))
for number in [*range(len(manifest.shards)), *range(len(manifest.shards))]:
    store.fetch(number)
    for row in range(manifest.shards[number].samples):
        assert store.sample(number, row).latents[0][0, 0, 0] == row + sum(s.samples for s in manifest.shards[:number])
store.close()
print("read all", flush=True)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A corpus of four shards at a URL that is no plain path, with its manifest."""
    base = tmp_path_factory.mktemp("corpus")
    manifest = write_corpus(base, "far", [12, 12, 12, 12])
    for name, data in manifest.files().items():
        (base / "far" / name).write_bytes(data)
    return replace(manifest, base=f"local://{base}/far")


def reading(
    corpus: Manifest, cache: Path, limit: int, pause: float = 0.0, **given: Any
) -> subprocess.Popen[str]:
    """A process that reads the corpus twice through `cache`."""
    command = [sys.executable, "-c", READER, corpus.base, str(cache), str(limit), str(pause)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes, **given)


def left(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir() if not path.name.startswith(".lock")}


def fetched(corpus: Manifest, cache: Path) -> ShardStore:
    """A store whose shards all are in the cache."""
    store = ShardStore(corpus, cache, 1 << 30)
    for number in range(len(corpus.shards)):
        store.fetch(number)
    return store


def check(cache: Path, corpus: Manifest) -> None:
    """Every file has the bytes of the shard whose digest it is called by."""
    shards = {f"{s.sha256}.tar": Path(f"{corpus.base[8:]}/{s.name}").read_bytes() for s in corpus.shards}
    assert left(cache).items() <= shards.items()


def test_processes_share_a_cache_that_is_too_small(corpus: Manifest, tmp_path: Path) -> None:
    limit = 2 * corpus.shards[0].bytes
    held = [reading(corpus, tmp_path / "cache", limit) for _ in range(2)]
    for process in held:
        out, error = process.communicate(timeout=500)
        assert out.endswith("read all\n"), error
    check(tmp_path / "cache", corpus)
    assert 0 < sum(map(len, left(tmp_path / "cache").values())) <= limit


def test_processes_that_begin_together_fetch_a_shard_once(corpus: Manifest, tmp_path: Path) -> None:
    held = [reading(corpus, tmp_path / "cache", 1 << 30, pause=0.2) for _ in range(2)]
    fetched = Counter(
        line for p in held for line in p.communicate(timeout=500)[0].splitlines() if ".tar" in line
    )
    assert len(fetched) == 4 and set(fetched.values()) == {1}


def test_a_process_that_is_killed_leaves_no_half_file(corpus: Manifest, tmp_path: Path) -> None:
    cache, draw = tmp_path / "cache", random.Random(0)
    process = reading(corpus, cache, 1 << 30, pause=5.0)
    assert process.stdout is not None
    while ".tar" not in process.stdout.readline():
        pass
    time.sleep(draw.uniform(0.0, 0.25))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert any(name.startswith(".fetch-") for name in left(cache))
    assert not any(name.endswith(".tar") and len(data) == 0 for name, data in left(cache).items())
    store = fetched(corpus, cache)
    assert [store.sample(n, row).document.doc_id for n in range(4) for row in range(12)] == DOCUMENTS
    store.close()
    check(cache, corpus)
    assert len(left(cache)) == 4


def test_a_disk_that_takes_no_file_does_not_stop_reading(corpus: Manifest, tmp_path: Path) -> None:
    """The system refuses files over 1 KiB to this process, as it does where a disk is full."""
    limits = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))}
    out, error = reading(corpus, tmp_path / "cache", 1 << 30, **limits).communicate(timeout=500)
    assert out.endswith("read all\n"), error
    assert "shards are read by ranges" in error
    assert not left(tmp_path / "cache")


@pytest.mark.parametrize("damage", ["a byte", "half"])
def test_a_damaged_file_is_fetched_anew(corpus: Manifest, tmp_path: Path, damage: str) -> None:
    def read() -> list[float]:
        store = fetched(corpus, tmp_path)
        try:
            return [float(store.sample(1, row).latents[0][0, 0, 0]) for row in range(12)]
        finally:
            store.close()

    def fetched_anew() -> list[float]:
        found = read()
        fetched(corpus, tmp_path).close()
        return found

    wanted = read()
    path = tmp_path / f"{corpus.shards[1].sha256}.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 4  # within the first document; heads of the tar are not read, so not checked
    path.write_bytes(data if damage == "a byte" else data[: len(data) // 2])
    assert fetched_anew() == wanted == list(range(12, 24))
    check(tmp_path, corpus)


class Flaky(MemoryFileSystem):
    """Objects in memory whose reads fail as `faults` says, first in, first out."""

    protocol = "flaky"
    faults: list[str] = []
    reads = 0
    store: dict[str, Any] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("flaky://", "memory://"))
        return stripped

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        type(self).reads += 1
        data: bytes = super().cat_file(path, start=start, end=end, **more)
        match self.faults.pop(0) if self.faults else "":
            case "reset":
                raise ConnectionResetError("connection reset by peer")
            case "slow down":
                raise RuntimeError("503 SlowDown")
            case "cut":
                return data[: len(data) // 2]
        return data


@pytest.fixture
def flaky(corpus: Manifest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manifest]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.001)
    Flaky.faults, Flaky.reads = [], 0
    for path in Path(corpus.base[8:]).iterdir():
        fsspec.filesystem("flaky").pipe(f"/far/{path.name}", path.read_bytes())
    yield replace(corpus, base="flaky://far")
    Flaky.store.clear()


@pytest.mark.parametrize("limit", [0, 100])
def test_shards_that_do_not_fit_are_read_by_ranges(flaky: Manifest, tmp_path: Path, limit: int) -> None:
    store = ShardStore(flaky, tmp_path / "cache", limit)
    assert [store.sample(n, row).document.doc_id for n in range(4) for row in range(12)] == DOCUMENTS
    assert 4 + 48 <= Flaky.reads <= 8 + 48, "an index each, and one range for each sample"
    assert not (tmp_path / "cache").exists()
    store.close()


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_reads_that_fail_are_tried_again(flaky: Manifest, tmp_path: Path, limit: int) -> None:
    draw, store = random.Random(1), ShardStore(flaky, tmp_path, limit)
    kinds = ["reset", "slow down", "cut"]
    Flaky.faults = [draw.choice(kinds) if draw.random() < 0.3 else "" for _ in range(300)]
    read = [store.sample(n, row).document.doc_id for n in range(4) for row in range(12)]
    assert read == DOCUMENTS
    store.close()


def test_reads_that_always_fail_end_with_the_error(flaky: Manifest, tmp_path: Path) -> None:
    store = ShardStore(flaky, tmp_path, 1 << 30)
    Flaky.faults = ["reset"] * 100
    with pytest.raises(ConnectionResetError):
        store.sample(0, 0)
    assert 5 <= Flaky.reads <= 20, "five for each thing that is read, in both threads"
    Flaky.faults = []
    assert store.sample(0, 0).document.doc_id == "far-0"
    fsspec.filesystem("flaky").rm("/far/shard-000002.tar")
    Flaky.reads = 0
    with pytest.raises(FileNotFoundError):
        store.sample(2, 0)
    assert Flaky.reads <= 4, "one look for the shard, and its index, in both threads"
    store.close()


def test_a_shard_that_is_damaged_where_it_lies_is_named(flaky: Manifest, tmp_path: Path) -> None:
    memory = fsspec.filesystem("flaky")
    data = bytearray(memory.cat_file("/far/shard-000003.tar"))
    data[600] ^= 1
    memory.pipe("/far/shard-000003.tar", bytes(data))
    for limit in (0, 1 << 30):
        store = ShardStore(flaky, tmp_path, limit)
        told = r"flaky://far/shard-000003\.tar: far-36\.json: bytes differ .*oneflow corpus verify"
        with pytest.raises(ShardError, match=told):
            store.sample(3, 0)
        assert store.sample(3, 1).document.doc_id == "far-37"
        store.close()
