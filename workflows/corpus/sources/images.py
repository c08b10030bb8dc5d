"""Images that rows name: in a directory, in a tar, in the row itself, or on the web."""

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from workflows.corpus.sources.protocol import Picture
from workflows.corpus.sources.rows import RowError
from workflows.corpus.sources.tars import is_safe
from workflows.corpus.sources.web import Web
from workflows.urls import without_secrets

OUTSIDE = "image outside its place"
SUFFIXES = (".jpg", ".png", ".jpeg", ".webp", ".JPG", ".gif")
"""Tried in this order for a name that has no suffix of an image."""


class Place(Protocol):
    """A directory or a tar with images."""

    remote: bool
    """Whether each image is a request, so that several at once are quicker."""

    def read(self, name: str) -> Picture | None:
        """The image of this name, which `is_safe`; None where there is none. Several threads may ask."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


@dataclass(frozen=True, slots=True)
class Pending:
    """A picture that is being fetched."""

    future: Future[Picture]


class Images:
    """Pictures by what rows say of them. With `elsewhere`, what a URL names is looked for in the places alone."""

    def __init__(self, places: Sequence[Place], web: Web | None = None, *, elsewhere: bool = False) -> None:
        self._places, self._web, self._elsewhere = places, web, elsewhere
        self._remote = any(place.remote for place in places)
        self._pool: ThreadPoolExecutor | None = None

    @property
    def threads(self) -> int:
        """Pictures that are fetched at once."""
        return self._web.threads if self._web is not None else 1

    def picture(self, value: Any) -> Picture | Pending:
        """The picture that a column holds: bytes, a name, a URL, a data URL, or a mapping with `bytes` and `path`.

        Raises:
            RowError: it is nothing of that kind.
        """
        if isinstance(value, Mapping):
            data = value.get("bytes")
            name = next((n for n in (value.get("path"), value.get("url")) if isinstance(n, str)), None)
            if isinstance(data, bytes):
                return Picture(without_secrets(name or ""), data)
            value = name
        if isinstance(value, bytes):
            return Picture("", value)
        if not isinstance(value, str):
            raise RowError("image name not a string")
        return self.named(value)

    def named(self, *names: str) -> Picture | Pending:
        """The picture of the first of these names that is there."""
        fetched = any("://" in name and not self._elsewhere for name in names)
        if not fetched and not self._remote:
            return self._first(names)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads)
        return Pending(self._pool.submit(self._first, names))

    def _first(self, names: Sequence[str]) -> Picture:
        missing: Picture | None = None
        for name in names:
            found = self._named(name)
            if found.data is not None:
                return found
            if missing is None or missing.reason == "image missing":
                missing = found
        return missing if missing is not None else Picture("", None)

    def close(self) -> None:
        """Let go of what is open."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for place in self._places:
            place.close()

    def _named(self, name: str) -> Picture:
        if name.startswith("data:"):
            return _of_data_url(name)
        if "://" in name:
            if self._elsewhere:
                shown = without_secrets(name)
                found = self._placed(unquote(urlsplit(name).path).rpartition("/")[2])
                return Picture(shown, found.data, found.reason)
            return self._web.picture(name) if self._web is not None else Picture(without_secrets(name), None)
        return self._placed(name)

    def _placed(self, name: str) -> Picture:
        if not is_safe(name) or "\0" in name:
            return Picture(name, None, OUTSIDE)
        plain = os.path.normpath(name) if name.strip() else ""
        suffix = PurePosixPath(plain).suffix.lower()
        candidates = (
            [plain]
            if len(suffix) > 1 and not suffix[1:].isdigit()
            else [plain, *(plain + s for s in SUFFIXES)]
        )
        for candidate in candidates if plain not in ("", ".") else ():
            for place in self._places:
                found = place.read(candidate)
                if found is not None:
                    return found
        return Picture(name, None)


def _of_data_url(url: str) -> Picture:
    about, comma, data = url.partition(",")
    if not comma or not about.endswith(";base64"):
        return Picture(about[:64], None, "data url malformed")
    try:
        return Picture(about[:64], base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        return Picture(about[:64], None, "data url malformed")
