"""Requests to S3 are tried again for the moment's failures alone, for so long, and are counted."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from workflows import store_retries
from workflows.errors import OneFlowError, UsageError
from workflows.storage_errors import explain
from workflows.store_retries import LONGEST_BACKOFF_S, PATIENCE, Retries, StoreGone, _Body


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [0.0]
    monkeypatch.setattr(store_retries, "time", SimpleNamespace(monotonic=lambda: now[0]))
    yield now


def ask(retries: Retries, attempts: int, context: dict[str, Any], status: int = 0, code: str = "") -> Any:
    """What is answered after an attempt that ended with a status, or without any answer."""
    response = (
        (SimpleNamespace(status_code=status), {"Error": {"Code": code}} if code else {}) if status else None
    )
    error = None if status else EndpointConnectionError(endpoint_url="http://127.0.0.1:9")
    return retries._delay(
        response=response,
        attempts=attempts,
        caught_exception=error,
        operation=SimpleNamespace(name="PutObject"),
        request_dict={"context": context},
    )


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "SlowDown"), (500, "InternalError"), (429, ""), (400, "RequestTimeout"), (0, "")],
)
def test_what_may_pass_is_tried_again(status: int, code: str) -> None:
    retries = Retries()
    waits = [ask(retries, n, {}, status, code) for n in range(1, 40) for _ in range(20)]
    assert all(0 <= wait <= LONGEST_BACKOFF_S for wait in waits)
    assert max(waits[:20]) <= 0.2 < max(waits) and len(set(waits)) > 700, "longer and longer, with jitter"
    assert retries.counts() == {"PutObject": 39 * 20}


@pytest.mark.parametrize(
    ("status", "code"),
    [(200, ""), (404, "NoSuchKey"), (403, "AccessDenied"), (412, "PreconditionFailed"), (501, "")],
)
def test_what_is_final_is_not(status: int, code: str) -> None:
    retries = Retries()
    assert ask(retries, 1, {}, status, code) is None and not retries.counts()
    assert store_retries._transient(None, NoCredentialsError()) is None


def test_patience_has_an_end(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "30")
    retries, context = Retries(), dict[str, Any]()
    retries.expect_store()
    attempts = 0
    with pytest.raises(StoreGone, match=r"127\.0\.0\.1:9.*in 30 s") as gone:
        while True:
            attempts += 1
            clock[0] += ask(retries, attempts, context)
    assert 30 <= clock[0] < 30 + LONGEST_BACKOFF_S and 8 < attempts < 80
    told = explain("s3://b/x", gone.value)
    assert isinstance(told, OneFlowError) and "goes on where it was" in told.mend
    assert ask(retries, 1, {}) is not None, "another request has its own time"


def test_a_store_that_never_answered_is_given_up_soon(clock: list[float]) -> None:
    retries, context = Retries(), dict[str, Any]()
    assert ask(retries, 1, context) is not None
    clock[0] = store_retries.FIRST_PATIENCE_S
    with pytest.raises(StoreGone):
        ask(retries, 2, context)
    assert ask(retries, 1, {}, 200) is None
    assert ask(retries, 2, context) is not None, "it answered since: it is only away"


def test_patience_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "long")
    with pytest.raises(UsageError, match="'long' is no number"):
        store_retries.patience_s()


def test_a_body_that_breaks_off_is_counted() -> None:
    class Broken:
        async def read(self, size: int = -1) -> bytes:
            await asyncio.sleep(0)
            if size == 1:
                return b"x"
            raise OSError("cut")

        def close(self) -> str:
            return "closed"

    broken: list[int] = []
    body = _Body(Broken(), lambda: broken.append(1))
    assert asyncio.run(body.read(1)) == b"x" and not broken and body.close() == "closed"
    with pytest.raises(OSError, match="cut"):
        asyncio.run(body.read())
    assert broken == [1]


def test_every_growth_is_told() -> None:
    retries, told = Retries(), list[dict[str, int]]()
    retries.tell = lambda counts: told.append(dict(counts))
    retries.add({"PutObject": 2})
    retries.add({"GetObject": 1})
    assert told == [{"PutObject": 2}, {"PutObject": 2, "GetObject": 1}]
