"""Reads of remote objects that go on when a request fails: few tries, further and further apart, then the error."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TRIES = 5
FIRST_PAUSE_S = 0.1
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ImportError, TypeError)
"""Errors that another try would give again."""


class WrongBytesError(OSError):
    """What came is not what was asked for: cut short, or another content."""


def retried(act: Callable[[], T], tries: int = TRIES) -> T:
    """What `act` gives, tried up to `tries` times; pauses double, each stretched by a random half of itself.

    Libraries below fsspec raise errors of their own kinds, so all but those of `FINAL` are tried again.
    """
    for number in range(tries - 1):
        try:
            return act()
        except FINAL:
            raise
        except Exception:
            time.sleep(FIRST_PAUSE_S * 2**number * (1 + random.random() / 2))
    return act()


def fetch(
    url: str,
    start: int | None = None,
    stop: int | None = None,
    size: int | None = None,
    sha256: str | None = None,
) -> bytes:
    """The object at `url`, or its bytes from `start` to `stop`; `size` or `sha256` is what they must have.

    Raises:
        FileNotFoundError: there is no such object.
        WrongBytesError: other bytes came at every try.
        OSError: what the last try raised, if it was not some library's own kind.
    """
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(url)

    def read() -> bytes:
        data: bytes = filesystem.cat_file(path, start=start, end=stop)
        if size is not None and len(data) != size:
            raise WrongBytesError(f"{path}: {len(data)} bytes came, {size} are there")
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise WrongBytesError(f"{path}: its SHA-256 is not {sha256[:12]}")
        return data

    return retried(read)
