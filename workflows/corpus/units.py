"""The units of work of a source: its files, found by listing alone, and read from where they are."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from workflows.corpus.config import CorpusConfig
from workflows.corpus.guarded import guarded
from workflows.corpus.listing import ARCHIVES, digest_of_places, find_files, find_places, find_units
from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources import READERS, Draft, Picture, Refused
from workflows.corpus.sources.files import Files, Span
from workflows.corpus.sources.images import Images, Place
from workflows.corpus.sources.kept import Kept
from workflows.corpus.sources.places import TarPlace, UnitFolder, place_at
from workflows.corpus.sources.stored import StoredFile
from workflows.corpus.sources.web import Web
from workflows.errors import OneFlowError, UsageError
from workflows.storage import join, open_fs
from workflows.urls import without_secrets

LOOKED_AT = 8
"""Files of a source that a first look reads."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One task's worth of a source: the file or directory at `address` is read, `files` are all that belong to it.

    `name` is its path below the fixed part of the URL, the same wherever the data lies; `stem` is that without the
    format's suffix, and stands in document ids. `spans` are the bytes that are the unit's, where a large file is cut
    into several, and `groups` its row groups.
    """

    source: str
    name: str
    stem: str
    address: str = field(repr=False)
    files: tuple[StoredFile, ...]
    places: str = ""
    """Digest of the listings of where its images lie; "" where those are among `files`, or on the web."""
    spans: tuple[Span, ...] = ()
    groups: tuple[int, int] = (0, 0)
    first: int | None = None
    """Most documents that are taken of it for a first look."""

    @property
    def main(self) -> str:
        """The URL that is read, as it may be shown."""
        return without_secrets(self.address)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(b - a for a, b in self.spans) if self.spans else sum(file.size for file in self.files)

    @property
    def etag(self) -> str:
        """Changes when any file does, or when one comes or goes; no matter where the unit lies."""
        if len(self.files) == 1 and not self.places:
            return self.files[0].etag
        listed = [f"{file.name}:{file.size}:{file.etag}" for file in self.files]
        return hashlib.sha256("\n".join([*listed, *filter(None, [self.places])]).encode()).hexdigest()[:32]

    def part(self, config: CorpusConfig) -> str:
        """Name of the unit's part: the same as long as neither the unit nor what decides its documents changes."""
        what = f"{config.ingest_digest(_source(config, self))}:{self.name}:{self.size}:{self.etag}"
        what += f":{self.first}" if self.first is not None else ""
        return f"part-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def list_units(config: CorpusConfig) -> list[Unit]:
    """All units, in the order of the config's sources and then of their names; for a first look a few of each source.

    Raises:
        OneFlowError: a URL that matches nothing, or a store that does not answer.
        UsageError: two inputs of a source with the same name.
    """
    return [unit for source in config.sources for unit in _looked_at(config, _units(config, source))]


class Rows:
    """What a unit holds: its drafts and refusals, in order; the same each time."""

    def __init__(self, source: SourceConfig, files: Files, kept: Kept, limit: int | None) -> None:
        self._source, self._files, self._kept = source, files, kept
        self.limit = limit
        """Most documents that are to be taken; who has them stops reading."""
        self._whole = False
        self._taken = hashlib.sha256()

    def __iter__(self) -> Iterator[Draft | Refused]:
        """The rows; a file that breaks is one refusal more, after what was good."""
        rows = READERS[self._source.format].read(self._files, self._source)
        for row in guarded(self._files.main, rows):
            if self.limit is not None:
                self._taken.update(_bytes_of(row))
            yield row
        self._whole = True

    def sha256(self) -> str:
        """Digest of the unit's files; of the rows that were read, where a limit ended the reading before their end.

        What was fetched for the rows is stored now, to be the same when they are read again.
        """
        self._kept.commit()
        return self._files.sha256() if self._whole or self.limit is None else self._taken.hexdigest()


@contextmanager
def opened(config: CorpusConfig, unit: Unit) -> Iterator[Rows]:
    """The rows of `unit`, for as long as this is open."""
    source = _source(config, unit)
    kept = Kept(kept_of(config, unit))
    web = Web(source.fetch, config.limits.image_bytes, kept)
    try:
        with Files(_main_name(unit), unit.files, config.limits, unit.spans, unit.groups) as files:
            files.images = Images(
                _places(config, source, unit, files, web), web, elsewhere=bool(source.images)
            )
            limits = [limit for limit in (source.limit, unit.first) if limit is not None]
            yield Rows(source, files, kept, min(limits, default=None))
    finally:
        kept.close()


def kept_of(config: CorpusConfig, unit: Unit) -> str:
    """URL of the part of images that were fetched for the unit's rows, if any were."""
    return join(config.root, "images", unit.source, f"{unit.part(config)}.parquet")


def _looked_at(config: CorpusConfig, units: list[Unit]) -> list[Unit]:
    """`units`, or for a first look some of them at even distances, which share its documents."""
    if config.first is None:
        return units
    count = min(len(units), config.first, LOOKED_AT)
    chosen = [units[i * len(units) // count] for i in range(count)]
    return [replace(u, first=(config.first + count - 1 - i) // count) for i, u in enumerate(chosen)]


def _source(config: CorpusConfig, unit: Unit) -> SourceConfig:
    return next(s for s in config.sources if s.name == unit.source)


def _main_name(unit: Unit) -> str:
    return next((file.name for file in unit.files if file.url == unit.address), unit.name.rpartition("/")[2])


def _bytes_of(row: Draft | Refused) -> bytes:
    if isinstance(row, Refused):
        return f"{row.key}:{row.reason}\n".encode("utf-8", "replace")
    digest = hashlib.sha256(f"{row.key}:{row.licence}:{len(row.segments)}\n".encode("utf-8", "replace"))
    for content, role in row.segments:
        data = (content.data or b"") if isinstance(content, Picture) else content.encode("utf-8", "replace")
        digest.update(f"{role}:{len(data)}:".encode() + data)
    return digest.digest()


def _units(config: CorpusConfig, source: SourceConfig) -> list[Unit]:
    units: dict[str, Unit] = {}
    places = [url for pattern in config.filled(source.images) for url in find_places(pattern)]
    listed = digest_of_places(places)
    answers = tuple(_annotations(config, source))
    for pattern in config.urls_of(source):
        count = len(units)
        for found in find_units(READERS[source.format], pattern):
            whole = Unit(source.name, found.name, found.stem, found.url, (*found.files, *answers), listed)
            for unit in _split(source, whole):
                other = units.setdefault(unit.stem, unit)
                if other.address != unit.address:
                    raise UsageError(
                        f"source {source.name}",
                        f"{other.main} and {unit.main} would both be named {unit.stem}",
                        "match them with one pattern, or make them two sources",
                    )
        if len(units) == count:
            raise OneFlowError(
                f"source {source.name}",
                f"there is no {source.format} input at {pattern}",
                "correct its urls, or write the files first",
            )
    return [units[name] for name in sorted(units)]


def _split(source: SourceConfig, unit: Unit) -> list[Unit]:
    parts = READERS[source.format].split(next((f for f in unit.files if f.url == unit.address), None))
    return [
        replace(
            unit, name=f"{unit.name}@{p.name}", stem=f"{unit.stem}/{p.name}", spans=p.spans, groups=p.groups
        )
        for p in parts
    ] or [unit]


def _annotations(config: CorpusConfig, source: SourceConfig) -> Iterator[StoredFile]:
    for number, pattern in enumerate(config.filled(source.annotations)):
        found = find_files(pattern)
        if not found:
            raise OneFlowError(
                f"source {source.name}", f"there are no annotations at {pattern}", "correct the URL"
            )
        for file in found:
            yield replace(file, name=f"annotations/{number}/{file.name}")


def _places(config: CorpusConfig, source: SourceConfig, unit: Unit, files: Files, web: Web) -> list[Place]:
    if source.images:
        urls = [url for pattern in config.filled(source.images) for url in find_places(pattern)]
        return [place_at(url, files, web, ARCHIVES) for url in urls]
    places: list[Place] = []
    for name in READERS[source.format].beside(files.main):
        if name.endswith("/"):
            places.append(UnitFolder(files, name))
        elif name in files.by_name and name.lower().endswith(ARCHIVES):
            places.append(TarPlace(files.by_name[name], files))
    parent = unit.address.partition("?")[0].rpartition("/")[0]
    if not READERS[source.format].rows or "://" in parent and not open_fs(parent)[1].strip("/"):
        return places
    return [
        *places,
        *(place_at(url, files, web, ARCHIVES) for url in (parent or "/", join(parent, "images"))),
    ]
