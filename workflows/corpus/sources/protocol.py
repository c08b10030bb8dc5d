"""What a reader of a source gives: drafts of documents, and refusals, one for each thing that was in the source."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from oneflow_core.document import Role
from workflows.corpus.source_config import SourceConfig

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


class Reader(Protocol):
    """Reads one format. Stateless, so that the same unit read again gives the same rows in the same order."""

    main: tuple[str, ...]
    """Suffixes of the files that are units of work; empty where a directory is one."""
    companions: tuple[str, ...]
    """Suffixes of files with the same stem that are read along with a unit; "/" is a directory of that name."""

    def read(self, path: Path, source: SourceConfig) -> Iterator[Draft | Refused]:
        """Rows of the unit at `path`, whose companions lie beside it; a broken row is refused, never raised."""
        ...


def head(data: bytes | str) -> bytes:
    """The first bytes of `data`, for a refusal."""
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    return raw[:HEAD_BYTES]
