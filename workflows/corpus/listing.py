"""What lies at URL patterns, told by listing alone: files, the units they make, and what belongs to them."""

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from workflows.corpus.sources.members import is_image
from workflows.corpus.sources.protocol import Reader, same_stem
from workflows.corpus.sources.stored import RETRIES, WAIT, StoredFile
from workflows.errors import OneFlowError
from workflows.storage import explained, open_fs
from workflows.urls import without_secrets

Listing = Mapping[str, Mapping[str, Any]]
"""Path of a file -> what the filesystem says of it."""
PROBES = 16
"""Requests at once where a server lists nothing and is asked file by file."""


@dataclass(frozen=True, slots=True)
class Found:
    """A unit's main file or directory at `url`, named `name` below the fixed part of its pattern."""

    name: str
    stem: str
    url: str = field(repr=False)
    files: tuple[StoredFile, ...]


def find_units(reader: Reader, pattern: str) -> Iterator[Found]:
    """What of `reader`'s format matches `pattern`, with the files that belong to each."""
    filesystem, fixed = open_fs(re.split(r"[*?{\[]", pattern)[0].rpartition("/")[0] or ".")
    for paths in _batches(filesystem, pattern):
        with explained(pattern):
            files = _find(filesystem, paths)
            mains = _mains(reader, files, paths)
            around = _around(filesystem, reader, mains)
            for main, members in mains.items():
                parent = main.rpartition("/")[0]
                infos = {m: files[m] for m in members} | _companions(filesystem, reader, main, around)
                stored = tuple(_stored(filesystem, parent, p, i) for p, i in sorted(infos.items()))
                name = _bare(filesystem, main).removeprefix(fixed).strip("/") or base_name(filesystem, main)
                yield Found(name, _stem(reader, name), _url(filesystem, main), stored)


def find_files(pattern: str) -> list[StoredFile]:
    """The files that match, or lie below directories that do, named by their last part."""
    filesystem, _ = open_fs(pattern)
    with explained(pattern):
        found = {p: i for paths in _batches(filesystem, pattern) for p, i in _find(filesystem, paths).items()}
        return [_stored(filesystem, p.rpartition("/")[0], p, i) for p, i in sorted(found.items())]


def find_places(pattern: str) -> list[str]:
    """URLs that a pattern of image places names: directories and archives, not what lies in them."""
    filesystem, _ = open_fs(pattern)
    found: list[str] = []
    for one in braceexpand(pattern):
        with explained(one):
            path = open_fs(one)[1]
            if not wild(filesystem, path):
                found.append(one)
                continue
            matches = sorted(filesystem.glob(path))
        # A pattern of image files means the directories that they are in.
        found += [_url(filesystem, p.rpartition("/")[0] if is_image(p) else p) for p in matches]
    return list(dict.fromkeys(found))


def digest_of_places(places: Iterable[str]) -> str:
    """Changes when anything that lies in one of the places does; not with where they are. "" for no place.

    Raises:
        OneFlowError: a place with nothing in it.
    """
    digest, places = hashlib.sha256(), list(places)
    for place in places:
        if place.lower().endswith(".zip"):
            raise OneFlowError(place, "zips are no places of images", "unpack it, or make it a tar")
        filesystem, path = open_fs(place)
        if is_http(filesystem) and not _bare(filesystem, path).lower().endswith(ARCHIVES):
            continue
        with explained(place):
            found = _find(filesystem, [path])
        if not found:
            raise OneFlowError(place, "there are no images", "correct `images` of the source")
        for name, info in sorted(found.items()):
            below = name.removeprefix(path) or base_name(filesystem, name)
            digest.update(f"{below}:{info.get('size')}:{etag_of(info)}\n".encode("utf-8", "replace"))
    return digest.hexdigest()[:32] if places else ""


ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


def is_http(filesystem: AbstractFileSystem) -> bool:
    """Whether it is a web server, which need not list anything."""
    return "http" in filesystem.protocol


def wild(filesystem: AbstractFileSystem, path: str) -> bool:
    """Whether `path` is a pattern; what follows `?` in a web address is no pattern."""
    return (
        any(c in path.partition("?")[0] for c in "*[")
        if is_http(filesystem)
        else any(c in path for c in "*?[")
    )


def base_name(filesystem: AbstractFileSystem, path: str) -> str:
    """The last part of a path, without a query."""
    return _bare(filesystem, path).rstrip("/").rpartition("/")[2]


def etag_of(info: Mapping[str, Any]) -> str:
    """What a filesystem says of a file that changes when its bytes do; "" where it says nothing."""
    for key in (
        "ETag",
        "etag",
        "md5Hash",
        "mtime",
        "LastModified",
        "Last-Modified",
        "Content-MD5",
        "created",
    ):
        if info.get(key) is not None:
            return str(info[key]).strip('"')
    return ""


def _stem(reader: Reader, name: str) -> str:
    parent, slash, base = name.rpartition("/")
    return parent + slash + same_stem(base, reader.main, "")[0] if reader.main else name


def _batches(filesystem: AbstractFileSystem, pattern: str) -> list[list[str]]:
    """The paths that braces stand for, to be looked up one after the other; at once where each is a request."""
    paths = [open_fs(one)[1] for one in braceexpand(pattern)]
    return [paths] if is_http(filesystem) else [[path] for path in paths]


def _bare(filesystem: AbstractFileSystem, path: str) -> str:
    return path.partition("?")[0].partition("#")[0] if is_http(filesystem) else path


def _find(filesystem: AbstractFileSystem, paths: list[str]) -> dict[str, Any]:
    """Files that match, and all files below directories that match."""
    asked = [path for path in paths if is_http(filesystem) and not wild(filesystem, path)]
    files = _probed(filesystem, asked) if asked else {}
    for path in paths:
        if wild(filesystem, path):
            for match, info in filesystem.glob(path, detail=True).items():
                files |= {match: info} if info["type"] == "file" else filesystem.find(match, detail=True)
        elif not asked:
            files |= filesystem.find(path, detail=True)
        if not files and not is_http(filesystem):
            # Matching passes over a bucket that does not exist; listing it tells.
            filesystem.ls(path.split("/")[0] or "/")
    return {path: info for path, info in files.items() if info["type"] == "file" or info.get("islink")}


def _probed(filesystem: AbstractFileSystem, paths: Iterable[str]) -> dict[str, Any]:
    """Those that a web server has, asked one by one; a page that lists others is taken for a directory."""

    with ThreadPoolExecutor(PROBES) as pool:
        found = pool.map(lambda path: _probe(filesystem, path), paths)
        return {path: about for infos in found for path, about in infos.items()}


def _probe(filesystem: AbstractFileSystem, path: str) -> dict[str, Any]:
    for attempt in range(RETRIES):
        try:
            return filesystem.find(path, detail=True) if path.endswith("/") else {path: filesystem.info(path)}
        except FileNotFoundError as error:
            # It stands for whatever went wrong; what that was is its cause.
            status = getattr(error.__cause__, "status", None)
            if status in (404, 410):
                return {}
            if status in (401, 403):
                raise PermissionError(f"the server answered {status}") from None
            if attempt == RETRIES - 1:
                told = without_secrets(str(error.__cause__ or error))
                raise OneFlowError(path, f"the server does not answer: {told}", "try again") from None
            time.sleep(WAIT * 2**attempt)
    raise AssertionError("unreachable")


def _mains(reader: Reader, files: Listing, asked: list[str]) -> dict[str, list[str]]:
    """Path of each unit's main file, or directory with images, and the paths of what it holds."""
    if reader.main:
        # A file that is named outright is read whatever its suffix.
        named = len(asked) == 1 and set(files) == set(asked)
        return {p: [p] for p in files if named or reader.is_main(p.partition("?")[0])}
    groups: dict[str, list[str]] = {}
    for path in files:
        groups.setdefault(path.rpartition("/")[0], []).append(path)
    return {folder: paths for folder, paths in groups.items() if any(is_image(path) for path in paths)}


def _around(filesystem: AbstractFileSystem, reader: Reader, mains: Iterable[str]) -> dict[str, Any]:
    """What stands in the directories of the mains, where their companions may be."""
    found: dict[str, Any] = {}
    if is_http(filesystem):
        asked = {
            f"{main.rpartition('/')[0]}/{name}"
            for main in mains
            for name in reader.beside(base_name(filesystem, main))
            if not name.endswith("/")
        }
        return _probed(filesystem, sorted(asked))
    for parent in sorted({main.rpartition("/")[0] or "/" for main in mains}):
        found |= {info["name"].rstrip("/"): info for info in filesystem.ls(parent, detail=True)}
    return found


def _companions(
    filesystem: AbstractFileSystem, reader: Reader, main: str, around: Listing
) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for name in reader.beside(base_name(filesystem, main)):
        path = f"{main.rpartition('/')[0]}/{name}"
        info = around.get(path.rstrip("/"))
        if info and info["type"] == "directory" and name.endswith("/"):
            found |= _find(filesystem, [path.rstrip("/")])
        elif info and (info["type"] == "file" or info.get("islink")) and not name.endswith("/"):
            found[path] = info
    return found


def _stored(filesystem: AbstractFileSystem, parent: str, path: str, info: Mapping[str, Any]) -> StoredFile:
    name = _bare(filesystem, path).removeprefix(parent).lstrip("/")
    return StoredFile(name, _url(filesystem, path), int(info.get("size") or 0), etag_of(info))


def _url(filesystem: AbstractFileSystem, path: str) -> str:
    return path if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(path))
