import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows import storage
from workflows.errors import OneFlowError
from workflows.storage_errors import explain

SMALL_DISK = Path("/dev/full")


@given(st.binary(max_size=4096))
def test_put_then_read_gives_the_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    url = str(tmp_path_factory.getbasetemp() / "deep" / "er" / "object")
    assert storage.put_atomic(url, data)
    assert storage.read_bytes(url) == Path(url).read_bytes() == data
    assert storage.sha256_of(url) == hashlib.sha256(data).hexdigest() == storage.sha256(data)
    assert storage.size(url) == len(data)


def test_range_read(tmp_path: Path) -> None:
    storage.put_atomic(f"file://{tmp_path}/x", bytes(range(100)))
    assert storage.read_bytes(f"{tmp_path}/x", 10, 20) == bytes(range(10, 20))


def test_if_absent_keeps_what_is_there(tmp_path: Path) -> None:
    assert storage.put_atomic(f"{tmp_path}/x", b"first", if_absent=True)
    assert not storage.put_atomic(f"{tmp_path}/x", b"second", if_absent=True)
    assert storage.read_bytes(f"{tmp_path}/x") == b"first"
    assert os.listdir(tmp_path) == ["x"]


def test_of_many_conditional_writers_one_wins(tmp_path: Path) -> None:
    wins: list[int] = []
    start = threading.Barrier(16)

    def write(number: int) -> None:
        start.wait()
        if storage.put_atomic(f"{tmp_path}/x", str(number).encode(), if_absent=True):
            wins.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert storage.read_bytes(f"{tmp_path}/x") == str(wins[0]).encode()
    assert os.listdir(tmp_path) == ["x"]


def test_reader_never_sees_a_part(tmp_path: Path) -> None:
    url, seen, done = f"{tmp_path}/x", set(), threading.Event()
    storage.put_atomic(url, b"a" * (1 << 20))

    def read() -> None:
        while not done.is_set():
            seen.add(storage.read_bytes(url))

    reader = threading.Thread(target=read)
    reader.start()
    for letter in (b"b", b"c", b"d"):
        storage.put_atomic(url, letter * (1 << 20))
    done.set()
    reader.join()
    assert all(len(data) == 1 << 20 and len(set(data)) == 1 for data in seen)


def test_the_file_gets_the_rights_of_the_umask(tmp_path: Path) -> None:
    storage.put_atomic(f"{tmp_path}/x", b"1")
    (tmp_path / "y").write_bytes(b"1")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_list_urls_expands_braces_globs_and_directories(tmp_path: Path) -> None:
    names = [f"s-{n:02d}.tar" for n in range(12)] + ["d/e.tar", "note.txt"]
    for name in names:
        storage.put_atomic(f"{tmp_path}/{name}", b"1")

    def listed(pattern: str) -> list[str]:
        return [os.path.relpath(url, tmp_path) for url in storage.list_urls(f"{tmp_path}/{pattern}")]

    assert listed("s-{03..05}.tar") == names[3:6]
    assert listed("*.tar") == names[:12]
    assert listed("**/*.tar") == sorted([*names[:12], "d/e.tar"])
    assert listed("{d/e.tar,note.txt}") == ["d/e.tar", "note.txt"]
    assert listed("d") == ["d/e.tar"]
    assert listed("none-*") == listed("nowhere") == []


def test_urls_keep_their_protocol(tmp_path: Path) -> None:
    storage.put_atomic(f"{tmp_path}/x", b"1")
    assert storage.list_urls(f"file://{tmp_path}/*") == [f"file://{tmp_path}/x"]


def test_json_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    storage.write_json(f"{tmp_path}/a", {"b": [1, "ü"], "a": None})
    storage.write_json(f"{tmp_path}/b", {"a": None, "b": [1, "ü"]})
    assert storage.read_json(f"{tmp_path}/a") == {"a": None, "b": [1, "ü"]}
    assert storage.read_bytes(f"{tmp_path}/a") == storage.read_bytes(f"{tmp_path}/b")


def test_join() -> None:
    assert storage.join("s3://b/", "/x/", "y") == "s3://b/x/y"
    assert storage.join("/root", "a/b") == "/root/a/b"


def test_delete(tmp_path: Path) -> None:
    storage.put_atomic(f"{tmp_path}/d/x", b"1")
    storage.delete(f"{tmp_path}/d", recursive=True)
    storage.delete(f"{tmp_path}/d", recursive=True)
    assert not storage.exists(f"{tmp_path}/d")


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("{dir}/none", "nothing is there"),
        ("{dir}/my-bucket", "nothing is there"),
        ("foo://bucket/x", "Protocol not known"),
        ("gs://bucket/x", "needs a package that is missing"),
        ("{dir}/file/below", "a part of the path is a file"),
    ],
)
def test_errors_name_the_url_the_cause_and_the_mend(tmp_path: Path, url: str, cause: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    url = url.format(dir=tmp_path)
    with pytest.raises(OneFlowError) as caught:
        storage.read_bytes(url)
    assert caught.value.what == url
    assert cause in caught.value.cause
    assert caught.value.mend


def test_not_json_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{")
    with pytest.raises(OneFlowError, match="not JSON"):
        storage.read_json(f"{tmp_path}/x")


@pytest.mark.skipif(not SMALL_DISK.exists(), reason="no /dev/full on this system")
def test_full_disk_is_told() -> None:
    with pytest.raises(OneFlowError, match="the disk is full"), storage.explained("/dev/full"):
        SMALL_DISK.write_bytes(b"x" * 10)


def test_read_only_disk_is_told() -> None:
    told = explain("/x", OSError(errno.EROFS, "Read-only file system"))
    assert "read-only" in str(told)


def test_a_bug_stays_a_bug() -> None:
    with pytest.raises(KeyError), storage.explained("/x"):
        raise KeyError("bug")


def test_directories_right_below_are_listed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b/x", "a/deep/y", "file"):
        storage.put_atomic(str(tmp_path / name), b"")
    assert storage.list_directories(str(tmp_path)) == ["a", "b"]
    assert storage.list_directories(str(tmp_path / "none")) == []
    storage.put_atomic("memory://listed/a/x", b"")
    assert storage.list_directories("memory://listed") == ["a"]


def test_what_a_killed_writer_leaves_is_no_object_and_is_listed_as_unfinished(tmp_path: Path) -> None:
    code = f"""
import os, signal
from workflows.storage import put_atomic
os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
put_atomic("{tmp_path}/x.json", b"half")"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    storage.put_atomic(str(tmp_path / "whole.json"), b"{}")
    storage.put_atomic(str(tmp_path / ".hidden.json"), b"{}")
    [left] = storage.list_unfinished(str(tmp_path))
    assert Path(left).read_bytes() == b"half" and Path(left).parent == tmp_path
    assert not storage.exists(str(tmp_path / "x.json"))
    assert storage.list_unfinished(str(tmp_path / "none")) == storage.list_unfinished("memory://listed") == []
