"""Places of images: directories and tars, on this machine or elsewhere. One image is held at a time."""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fsspec.implementations.local import LocalFileSystem

from workflows.corpus.sources.files import Files
from workflows.corpus.sources.images import OUTSIDE, Place
from workflows.corpus.sources.packed import Broken
from workflows.corpus.sources.protocol import Picture
from workflows.corpus.sources.stored import RETRIES, WAIT, StoredFile
from workflows.corpus.sources.tars import members
from workflows.corpus.sources.web import Web
from workflows.errors import OneFlowError
from workflows.storage import join, open_fs
from workflows.storage_errors import explain

TOO_LARGE = "image too large"


def place_at(url: str, files: Files, web: Web, archives: Sequence[str]) -> Place:
    """The place at `url`: a tar by its suffix, else a directory."""
    filesystem, path = open_fs(url)
    limit = files.limits.image_bytes
    if path.partition("?")[0].lower().endswith(tuple(archives)):
        return TarPlace(StoredFile(path.rpartition("/")[2], url, _size(filesystem, url, path), ""), files)
    if isinstance(filesystem, LocalFileSystem):
        return LocalFolder(Path(path), limit)
    if "http" in filesystem.protocol:
        return WebFolder(url, web)
    return RemoteFolder(url, limit)


class LocalFolder:
    """A directory of this machine. Links that lead out of it are refused."""

    remote = False

    def __init__(self, folder: Path, limit: int) -> None:
        self._root, self._limit = folder.resolve(), limit

    def read(self, name: str) -> Picture | None:
        """The file below the directory; what `name` repeats of the directory's own path is passed over."""
        for below in _below(str(self._root), name):
            try:
                file = (self._root / below).resolve()
                if not file.is_relative_to(self._root):
                    return Picture(name, None, OUTSIDE)
                if file.is_file():
                    return read_local(file, name, self._limit)
            except (OSError, RuntimeError, ValueError):
                continue
        return None

    def close(self) -> None:
        """Nothing is open."""


class RemoteFolder:
    """A directory of an object store; an object is asked for by its name, nothing is listed."""

    remote = True

    def __init__(self, url: str, limit: int) -> None:
        self._url, self._limit = url, limit
        self._filesystem, self._root = open_fs(url)

    def read(self, name: str) -> Picture | None:
        """The object below the directory."""
        for below in _below(self._root, name):
            data = self._get(f"{self._root}/{below}")
            if data is not None:
                large = len(data) > self._limit
                return Picture(name, None, TOO_LARGE) if large else Picture(name, data)
        return None

    def close(self) -> None:
        """Nothing is open."""

    def _get(self, path: str) -> bytes | None:
        for attempt in range(RETRIES):
            try:
                data: bytes = self._filesystem.cat_file(path, start=0, end=self._limit + 1)
                return data
            except (FileNotFoundError, IsADirectoryError):
                return None
            except Exception as error:
                if attempt == 0 and self._filesystem.exists(path) and self._filesystem.size(path) == 0:
                    return b""
                if attempt == RETRIES - 1:
                    told = explain(self._url, error)
                    if isinstance(told, OneFlowError):
                        raise told from None
                    raise OneFlowError(self._url, f"reading an image failed: {told}", "try again") from None
                time.sleep(WAIT * 2**attempt)
        raise AssertionError("unreachable")


class WebFolder:
    """A directory of a web server."""

    remote = True

    def __init__(self, url: str, web: Web) -> None:
        self._url, self._web = url, web

    def read(self, name: str) -> Picture | None:
        """The page below the directory, fetched."""
        for below in _below(urlsplit(self._url).path, name):
            data, reason = self._web.tried(join(self._url, quote(below)), gone="")
            if data is not None or reason:
                return Picture(name, data, reason or "image missing")
        return None

    def close(self) -> None:
        """Nothing is open."""


class UnitFolder:
    """A directory that belongs to a unit, whose files are known and digested."""

    remote = False

    def __init__(self, files: Files, prefix: str) -> None:
        self._files, self._prefix = files, prefix

    def read(self, name: str) -> Picture | None:
        """The file of the unit below the directory."""
        file = self._files.by_name.get(self._prefix + name)
        return None if file is None else read_file(self._files, file, self._prefix)

    def close(self) -> None:
        """Nothing is open."""


class TarPlace:
    """A tar: an index of its members is held, of a tar from elsewhere or compressed a copy on disk."""

    remote = False

    def __init__(self, file: StoredFile, files: Files) -> None:
        self._file, self._files = file, files
        self._descriptor: int | None = None
        self._index: Mapping[str, tuple[int, int, str | None]] | None = None
        self._by_base: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def read(self, name: str) -> Picture | None:
        """The member of this name, or the only one whose path ends with it."""
        with self._lock:
            if self._index is None:
                self._index = self._open()
        found = self._index.get(name)
        if found is None:
            ends = [
                m for m in self._by_base.get(name.rpartition("/")[2], ()) if _one_ends_with_other(m, name)
            ]
            if len(ends) != 1:
                return None
            found = self._index[ends[0]]
        offset, size, reason = found
        if reason is None and size > self._files.limits.image_bytes:
            reason = TOO_LARGE
        if reason is not None or self._descriptor is None:
            return Picture(name, None, reason or "image missing")
        return Picture(name, os.pread(self._descriptor, size, offset))

    def close(self) -> None:
        """Close the tar."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> dict[str, tuple[int, int, str | None]]:
        index: dict[str, tuple[int, int, str | None]] = {}
        try:
            path = self._files.copy(self._file)
            with path.open("rb") as stream:
                for member in members(stream):
                    name = member.name.removeprefix("./")
                    if name not in index:
                        self._by_base.setdefault(name.rpartition("/")[2], []).append(name)
                    index[name] = (member.offset, member.size, member.reason)
        except OneFlowError:
            raise
        except Exception:  # noqa: BLE001 what is not found in a broken tar is counted, row by row, as missing
            pass
        try:
            self._descriptor = os.open(self._files.copy(self._file), os.O_RDONLY)
        except (OSError, EOFError, Broken):
            return {}
        return index


def read_file(files: Files, file: StoredFile, prefix: str = "") -> Picture:
    """A file of a unit as a picture, links followed only where they stay in the unit's directory."""
    name = file.name.removeprefix(prefix)
    filesystem, path = open_fs(file.url)
    if isinstance(filesystem, LocalFileSystem):
        depth = file.name.removeprefix(prefix).count("/")
        root = Path(path).parents[depth].resolve()
        resolved = Path(path).resolve()
        if not resolved.is_relative_to(root):
            return Picture(name, None, OUTSIDE)
        if not resolved.is_file():
            return Picture(name, None, "image missing")
    if file.size > files.limits.image_bytes:
        return Picture(name, None, TOO_LARGE)
    with files.stream(file.name) as stream:
        return Picture(name, stream.read())


def read_local(file: Path, name: str, limit: int) -> Picture:
    """A regular file of this machine."""
    if file.stat().st_size > limit:
        return Picture(name, None, TOO_LARGE)
    return Picture(name, file.read_bytes())


def _below(root: str, name: str) -> list[str]:
    """`name`, and what is left of it where it begins as the path of the place ends."""
    parts = name.split("/")
    ends = root.rstrip("/").split("/")
    return [name] + ["/".join(parts[n:]) for n in range(1, len(parts)) if ends[-n:] == parts[:n]]


def _one_ends_with_other(a: str, b: str) -> bool:
    return a.endswith(f"/{b}") or b.endswith(f"/{a}")


def _size(filesystem: Any, url: str, path: str) -> int:
    try:
        return int(filesystem.size(path) or 0)
    except Exception as error:
        raise explain(url, error) from None
