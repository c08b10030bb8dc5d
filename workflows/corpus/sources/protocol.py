"""What a reader of a source gives: drafts of documents, and refusals, one for each thing that was in the source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oneflow_core.document import Role
from workflows.corpus.source_config import SourceConfig
from workflows.urls import without_secrets

if TYPE_CHECKING:
    from workflows.corpus.sources.files import Files
    from workflows.corpus.sources.stored import StoredFile

HEAD_BYTES = 256
"""How much of a refused thing is kept to look at."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the source has it: its name there and its bytes, None where the source lacks it for `reason`."""

    name: str
    data: bytes | None
    reason: str = "image missing"


@dataclass(frozen=True, slots=True)
class Draft:
    """A document that nobody has checked yet. `key` tells it apart within its file."""

    key: str
    segments: tuple[tuple[str | Picture, Role], ...]
    licence: str
    meta: Mapping[str, str] = field(default_factory=dict)
    """Provenance, for `Document.meta`."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row's own columns (a sample's JSON), by the source's names, for filters."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What cannot become a document: its key, why (few distinct words: it is counted by), its first bytes."""

    key: str
    reason: str
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Split:
    """A unit out of a file: its name there, the bytes that it is, and its row groups [first, last)."""

    name: str
    spans: tuple[tuple[int, int], ...]
    groups: tuple[int, int]


class Reader(ABC):
    """Reads one format. Stateless, so that the same unit read again gives the same rows in the same order."""

    main: tuple[str, ...] = ()
    """Suffixes, in small letters, of the files that are units of work; empty where a directory is one."""

    rows: bool = True
    """Whether rows name their images, which may lie beside the file."""

    def is_main(self, path: str) -> bool:
        """Whether the file at `path`, found by a pattern or in a directory, is a unit."""
        return path.lower().endswith(self.main)

    def beside(self, name: str) -> tuple[str, ...]:
        """Names of the files, and of directories with a slash at the end, that are read along with unit `name`."""
        return ()

    def split(self, file: StoredFile | None) -> Sequence[Split]:
        """The units that a large file is cut into; none where it is one."""
        return ()

    @abstractmethod
    def read(self, files: Files, source: SourceConfig) -> Iterator[Draft | Refused]:
        """Rows of a unit. A broken row is refused; a file that breaks raises what it likes, after what was good."""


def same_stem(name: str, suffixes: tuple[str, ...], *others: str) -> tuple[str, ...]:
    """`name` with each of `others` in place of its suffix."""
    known = [s for s in suffixes if name.lower().endswith(s)]
    stem = name[: -len(max(known, key=len))] if known else name.rpartition(".")[0] or name
    return tuple(stem + other for other in others)


def head(data: bytes | str) -> bytes:
    """The first bytes of `data`, for a refusal; secrets of URLs are left out."""
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else bytes(data[: 16 * HEAD_BYTES])
    if b"://" in raw or b":\\/\\/" in raw:
        text = raw.decode("utf-8", "surrogateescape").replace("\\/", "/")
        raw = without_secrets(text).encode("utf-8", "surrogateescape")
    return raw[:HEAD_BYTES]
