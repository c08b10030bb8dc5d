"""The units of work of a source: its files, found by listing alone, and brought to local disk to be read."""

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from workflows.corpus.config import CorpusConfig
from workflows.corpus.guarded import guarded
from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources import READERS, Draft, Reader, Refused
from workflows.corpus.sources.members import is_image
from workflows.errors import OneFlowError, UsageError
from workflows.storage import explained, open_fs

Listing = Mapping[str, Mapping[str, Any]]
"""Path of a file -> what the filesystem says of it."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as a listing shows it. `etag` changes when its bytes do."""

    url: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Unit:
    """One task's worth of a source: `main` is read, `files` are all that belong to it, companions included.

    `name` is the path of `main` below the fixed part of the URL, the same wherever the data lies; `stem` is that
    without the format's suffix, and stands in document ids.
    """

    source: str
    name: str
    stem: str
    main: str
    files: tuple[StoredFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def etag(self) -> str:
        """Changes when any file does, or when one comes or goes; no matter where the unit lies."""
        if len(self.files) == 1:
            return self.files[0].etag
        listed = [f"{_below(self, file)}:{file.size}:{file.etag}" for file in self.files]
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:32]

    def part(self, config: CorpusConfig) -> str:
        """Name of the unit's part: the same as long as neither the unit nor what decides its documents changes."""
        source = next(s for s in config.sources if s.name == self.source)
        what = f"{config.ingest_digest(source)}:{self.name}:{self.size}:{self.etag}"
        return f"part-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def list_units(config: CorpusConfig) -> list[Unit]:
    """All units, in the order of the config's sources and then of their names.

    Raises:
        OneFlowError: a source that matches nothing, or a store that does not answer.
        UsageError: two inputs of a source with the same name.
    """
    return [unit for source in config.sources for unit in _units(config, source)]


class Rows:
    """What a unit holds: its drafts and refusals, in order; the same each time."""

    def __init__(self, unit: Unit, path: Path, source: SourceConfig) -> None:
        self._unit, self._path, self._source = unit, path, source

    def __iter__(self) -> Iterator[Draft | Refused]:
        return guarded(self._unit.name, READERS[self._source.format].read(self._path, self._source))

    def sha256(self) -> str:
        """Digest of the unit's files."""
        return digest_of(self._unit, self._path)


@contextmanager
def opened(config: CorpusConfig, unit: Unit) -> Iterator[Rows]:
    """The rows of `unit`, for as long as this is open."""
    source = next(s for s in config.sources if s.name == unit.source)
    with fetched(unit) as path:
        yield Rows(unit, path, source)


@contextmanager
def fetched(unit: Unit) -> Iterator[Path]:
    """A local path of the unit's main file or directory, companions beside it, for as long as this is open."""
    filesystem, main = open_fs(unit.main)
    if isinstance(filesystem, LocalFileSystem):
        yield Path(main)
        return
    with tempfile.TemporaryDirectory(prefix="oneflow-ingest-") as folder:
        paths = [open_fs(file.url)[1] for file in unit.files]
        local = [str(Path(folder, _below(unit, file))) for file in unit.files]
        for path in local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        with explained(unit.main):
            filesystem.get(paths, local)
        yield Path(folder, main.rpartition("/")[2])


def digest_of(unit: Unit, path: Path) -> str:
    """SHA-256 of the unit's only file, or over the names and SHA-256 of all, as fetched to `path`."""
    digests = []
    for file in unit.files:
        with (path.parent / _below(unit, file)).open("rb") as stream:
            digests.append((_below(unit, file), hashlib.file_digest(stream, "sha256").hexdigest()))
    if len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256("\n".join(f"{name}:{value}" for name, value in digests).encode()).hexdigest()


def _below(unit: Unit, file: StoredFile) -> str:
    """The file's path relative to the directory that the unit's main file or directory stands in."""
    return file.url.removeprefix(unit.main.rpartition("/")[0]).lstrip("/")


def _units(config: CorpusConfig, source: SourceConfig) -> list[Unit]:
    units: dict[str, Unit] = {}
    for pattern in config.urls_of(source):
        for unit in _units_at(source, pattern):
            other = units.setdefault(unit.stem, unit)
            if other.main != unit.main:
                raise UsageError(
                    f"source {source.name}",
                    f"{other.main} and {unit.main} would both be named {unit.stem}",
                    "match them with one pattern, or make them two sources",
                )
    if not units:
        raise OneFlowError(
            f"source {source.name}",
            f"there is no {source.format} input at {', '.join(config.urls_of(source))}",
            "correct its urls, or write the files first",
        )
    return [units[name] for name in sorted(units)]


def _units_at(source: SourceConfig, pattern: str) -> Iterator[Unit]:
    reader = READERS[source.format]
    filesystem, fixed = open_fs(re.split(r"[*?{\[]", pattern)[0].rpartition("/")[0] or ".")
    for one in braceexpand(pattern):
        with explained(one):
            files = _find(filesystem, open_fs(one)[1])
            mains = _mains(reader, files)
            around = _around(filesystem, mains)
            for main, members in mains.items():
                infos = {path: files[path] for path in members} | _companions(
                    filesystem, reader, main, around
                )
                name = main.removeprefix(fixed).strip("/") or main.rpartition("/")[2]
                stem = name[: -len(_suffix(name, reader)) or None]
                yield Unit(source.name, name, stem, _url(filesystem, main), _stored(filesystem, infos))


def _stored(filesystem: AbstractFileSystem, infos: Listing) -> tuple[StoredFile, ...]:
    return tuple(
        StoredFile(_url(filesystem, path), int(info["size"]), _etag(info))
        for path, info in sorted(infos.items())
    )


def _suffix(name: str, reader: Reader) -> str:
    return max((suffix for suffix in reader.main if name.endswith(suffix)), key=len, default="")


def _find(filesystem: AbstractFileSystem, path: str) -> dict[str, Any]:
    """Files that match, and all files below directories that match."""
    files: dict[str, Any] = {}
    if not any(wild in path for wild in "*?["):
        files = filesystem.find(path, detail=True)
    else:
        for match, info in filesystem.glob(path, detail=True).items():
            files |= {match: info} if info["type"] == "file" else filesystem.find(match, detail=True)
    if not files:
        # Matching passes over a bucket that does not exist; listing it tells.
        filesystem.ls(path.split("/")[0] or "/")
    return files


def _mains(reader: Reader, files: Listing) -> dict[str, list[str]]:
    """Path of each unit's main file, or directory with images, and the paths of what it holds."""
    if reader.main:
        return {path: [path] for path in files if path.endswith(reader.main)}
    groups: dict[str, list[str]] = {}
    for path in files:
        groups.setdefault(path.rpartition("/")[0], []).append(path)
    return {folder: paths for folder, paths in groups.items() if any(is_image(path) for path in paths)}


def _around(filesystem: AbstractFileSystem, mains: Iterable[str]) -> dict[str, Any]:
    """What stands in the directories of the mains, where their companions may be."""
    found: dict[str, Any] = {}
    for parent in sorted({main.rpartition("/")[0] or "/" for main in mains}):
        found |= {info["name"].rstrip("/"): info for info in filesystem.ls(parent, detail=True)}
    return found


def _companions(
    filesystem: AbstractFileSystem, reader: Reader, main: str, around: Listing
) -> dict[str, Mapping[str, Any]]:
    stem = main[: -len(_suffix(main, reader)) or None]
    found: dict[str, Mapping[str, Any]] = {}
    for suffix in reader.companions:
        info = around.get((stem + suffix).rstrip("/"))
        if info and info["type"] == "directory" and suffix == "/":
            found |= filesystem.find(stem, detail=True)
        elif info and info["type"] == "file":
            found[stem + suffix] = info
    return found


def _url(filesystem: AbstractFileSystem, path: str) -> str:
    return path if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(path))


def _etag(info: Mapping[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created"):
        if info.get(key) is not None:
            return str(info[key]).strip('"')
    return ""
