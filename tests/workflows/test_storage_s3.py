import threading
import uuid
from collections.abc import Iterator

import pytest

from tests.conftest import RunningStack
from workflows import storage
from workflows.errors import OneFlowError


@pytest.fixture
def root(stack: RunningStack) -> str:
    return stack.url(f"storage/{uuid.uuid4().hex}")


@pytest.fixture
def keys_unset(stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    yield from _fresh_filesystems()


def _fresh_filesystems() -> Iterator[None]:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def told(url: str) -> str:
    with pytest.raises(OneFlowError) as caught:
        storage.read_bytes(url)
    assert caught.value.what == url
    return str(caught.value)


def test_put_get_range_size_digest(root: str) -> None:
    data = bytes(range(256)) * 5000
    assert storage.put_atomic(f"{root}/x", data)
    assert storage.read_bytes(f"{root}/x") == data
    assert storage.read_bytes(f"{root}/x", 300, 310) == data[300:310]
    assert storage.size(f"{root}/x") == len(data)
    assert storage.sha256_of(f"{root}/x", block=1 << 16) == storage.sha256(data)


def test_of_many_conditional_writers_one_wins(root: str) -> None:
    wins: list[int] = []
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        if storage.put_atomic(f"{root}/x", str(number).encode(), if_absent=True):
            wins.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert storage.read_bytes(f"{root}/x") == str(wins[0]).encode()


def test_list_sees_what_another_process_wrote_since(root: str, stack: RunningStack) -> None:
    import boto3

    storage.put_atomic(f"{root}/a-1.tar", b"1")
    assert storage.list_urls(f"{root}/*.tar") == [f"{root}/a-1.tar"]
    key = root.removeprefix(f"s3://{stack.bucket}/")
    boto3.client("s3").put_object(Bucket=stack.bucket, Key=f"{key}/a-2.tar", Body=b"2")
    assert storage.list_urls(f"{root}/a-{{1..3}}.tar") == [f"{root}/a-1.tar", f"{root}/a-2.tar"]
    assert storage.list_urls(root) == [f"{root}/a-1.tar", f"{root}/a-2.tar"]
    assert storage.exists(f"{root}/a-2.tar")
    storage.delete(root, recursive=True)
    assert storage.list_urls(root) == []
    assert not storage.exists(root)


def test_missing_object_is_told(root: str) -> None:
    assert "nothing is there" in told(f"{root}/none")
    assert not storage.exists(f"{root}/none")


@pytest.mark.usefixtures("stack")
def test_missing_bucket_is_told() -> None:
    assert "the bucket does not exist" in told("s3://no-such-bucket/x")
    with pytest.raises(OneFlowError, match="the bucket does not exist"):
        storage.put_atomic("s3://no-such-bucket/x", b"1")
    with pytest.raises(OneFlowError, match="the bucket does not exist"):
        storage.list_urls("s3://no-such-bucket/*")
    assert not storage.exists("s3://no-such-bucket/x")


@pytest.mark.usefixtures("keys_unset")
def test_missing_credentials_are_told(root: str) -> None:
    message = told(f"{root}/x")
    assert "no credentials for S3 were found" in message
    assert "AWS_ACCESS_KEY_ID" in message


def test_wrong_secret_is_told_and_not_shown(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrongsecret")
    fresh = _fresh_filesystems()
    next(fresh)
    message = told(f"{root}/x")
    assert "access denied" in message
    assert "wrongsecret" not in message
    next(fresh, None)


def test_unreachable_store_is_told(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ONEFLOW_STORE_PATIENCE_S", "1")
    fresh = _fresh_filesystems()
    next(fresh)
    message = told(f"{root}/x")
    assert "http://127.0.0.1:9" in message
    assert "oneflow stack up" in message
    next(fresh, None)
