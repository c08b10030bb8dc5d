"""Retries of requests to S3: which, after what wait, for how long; and how many there were.

The loop is botocore's, which asks after every attempt (event `needs-retry`); what is answered is decided here alone:
its own rules know no limit in time, and its quota ends retries of many threads early. A body that breaks off is read
again by s3fs; that is counted here.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from fsspec.config import conf

from workflows.errors import UsageError

PATIENCE = "ONEFLOW_STORE_PATIENCE_S"
"""Environment variable: seconds for which a request is tried again while the store fails or does not answer."""
PATIENCE_S = 60.0
FIRST_PATIENCE_S = 3.0
"""The same for a store that never answered: more likely a wrong address than a restart."""
BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 5.0
TRANSIENT_STATUS = (429, 500, 502, 503, 504)
TRANSIENT_CODES = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling")


class StoreGone(ConnectionError):
    """Patience is at its end: the last of many attempts failed too."""


class Retries:
    """Counts retries by operation ("PutObject", ...) over all threads of the process, and bounds them in time."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._answered = False
        self.tell: Callable[[Mapping[str, int]], None] = lambda counts: None
        """Called with all counts when one of them grew."""

    def counts(self) -> Counter[str]:
        """Retries since the process began."""
        with self._lock:
            return self._counts.copy()

    def add(self, counts: Mapping[str, int]) -> None:
        """Count retries, of this process or of another one."""
        with self._lock:
            self._counts.update(counts)
            told = dict(self._counts)
        self.tell(told)

    def expect_store(self) -> None:
        """Another process reached the store already, so that one that does not answer is only away."""
        self._answered = True

    def watch(self, session: Any) -> Any:
        """A session of aiobotocore whose clients ask `self` from now on."""
        session.register("needs-retry.s3", self._delay)
        session.register("after-call.s3.GetObject", self._watch)
        return session

    def _delay(
        self,
        *,
        response: tuple[Any, Mapping[str, Any]] | None,
        attempts: int,
        caught_exception: Exception | None,
        operation: Any,
        request_dict: Mapping[str, Any],
        **_: Any,
    ) -> float | None:
        """Seconds to wait before the next attempt; None where the answer is final."""
        cause = _transient(response, caught_exception)
        if cause is None:
            self._answered = self._answered or response is not None
            return None
        begun = request_dict["context"].setdefault("oneflow_failing_since", time.monotonic())
        patience = patience_s() if self._answered else min(FIRST_PATIENCE_S, patience_s())
        if time.monotonic() - begun >= patience:
            raise StoreGone(f"{cause} (tried {attempts} times in {patience:.0f} s)") from caught_exception
        self.add({str(operation.name): 1})
        return random.uniform(0, min(LONGEST_BACKOFF_S, BACKOFF_S * 2**attempts))

    def _watch(self, *, parsed: dict[str, Any], **_: Any) -> None:
        if "Body" in parsed:
            parsed["Body"] = _Body(parsed["Body"], lambda: self.add({"GetObject": 1}))


class _Body:
    """The body of a response; `broken` is called where it ends too early."""

    def __init__(self, body: Any, broken: Callable[[], None]) -> None:
        self._body, self._broken = body, broken

    async def read(self, *size: int) -> bytes:
        try:
            data: bytes = await self._body.read(*size)
        except Exception:
            self._broken()
            raise
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


RETRIES = Retries()
"""Of this process."""


class Sessions:
    """What s3fs makes its clients with: each from a session of its own, watched by the process that it is in."""

    def __init__(self, profile: str | None = None) -> None:
        self._profile = profile

    def __repr__(self) -> str:
        """The same for the same profile: fsspec tells clients apart by it."""
        return f"Sessions({self._profile!r})"

    def create_client(self, *arguments: Any, **options: Any) -> Any:
        """A client, as `AioSession.create_client` gives it."""
        from aiobotocore.session import AioSession  # type: ignore[import-untyped]

        return RETRIES.watch(AioSession(profile=self._profile)).create_client(*arguments, **options)


def make_patient() -> None:
    """Every client of S3 that fsspec makes in this process from now on asks RETRIES; what users configured stays.

    Listings are not cached, because other processes write under the same URL. Large objects are read in one stream:
    only then s3fs reads a body that broke off again.
    """
    ours = {
        "use_listings_cache": False,
        "max_concurrency": 1,
        "config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}},
    }
    theirs = conf.get("s3", {})
    if "session" not in theirs:
        conf["s3"] = {**ours, **theirs, "session": Sessions(theirs.get("profile"))}


def patience_s() -> float:
    """What the environment says, in seconds; 0 fails at once."""
    text = os.environ.get(PATIENCE, "")
    try:
        return float(text or PATIENCE_S)
    except ValueError:
        raise UsageError(PATIENCE, f"{text!r} is no number of seconds", "set it to 60, or unset it") from None


def _transient(
    response: tuple[Any, Mapping[str, Any]] | None, caught_exception: Exception | None
) -> str | None:
    """What failed, if the same request may succeed later; None if it succeeded, or never will."""
    if response is None:
        from botocore.exceptions import ConnectionError, HTTPClientError

        return (
            str(caught_exception) if isinstance(caught_exception, ConnectionError | HTTPClientError) else None
        )
    code = response[1].get("Error", {}).get("Code", "")
    if response[0].status_code in TRANSIENT_STATUS or code in TRANSIENT_CODES:
        return f"the store answered {response[0].status_code} {code}".strip()
    return None
