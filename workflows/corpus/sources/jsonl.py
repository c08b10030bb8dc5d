"""Rows of JSON: questions about an image, interleaved segments, or plain text, with images beside the file.

Images are named in the rows and lie in a tar, or in a directory, of the same stem as the file.
"""

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from oneflow_core.document import Role
from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.protocol import Draft, Picture, Refused, head

Segments = tuple[tuple[str | Picture, Role], ...]


class RowError(ValueError):
    """A row that is no document; its text is the reason for the refusal."""


class JsonlReader:
    """Kinds of rows: {segments}, {question, answer, image?}, {text, image?}; each may have id and licence."""

    main: tuple[str, ...] = (".jsonl", ".jsonl.gz")
    companions: tuple[str, ...] = (".tar", "/")

    def read(self, path: Path, source: SourceConfig) -> Iterator[Draft | Refused]:
        """One draft or refusal for each line that is not blank."""
        seen: set[str] = set()
        with _Images(path) as images:
            for number, line in _lines(path):
                if isinstance(line, Exception):
                    yield Refused(path.name, "file broken", head(f"{type(line).__name__}: {line}"))
                    return
                row = _draft(number, line, source, images)
                if isinstance(row, Draft) and row.key in seen:
                    row = Refused(row.key, "key twice", head(line))
                seen.add(row.key)
                yield row


class _Images:
    """Bytes by name, from the tar or the directory that goes with a file of rows."""

    def __init__(self, path: Path) -> None:
        stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
        self._folder = path.parent / stem
        self._tar: tarfile.TarFile | None = None
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.open(path.parent / f"{stem}.tar")  # noqa: SIM115 closed by __exit__
            for info in self._tar:
                self._members[info.name.removeprefix("./")] = info
        except (tarfile.TarError, OSError):
            # What cannot be found in a broken or absent tar is counted, row by row, as a missing image.
            pass

    def __enter__(self) -> "_Images":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tar is not None:
            self._tar.close()

    def read(self, name: str) -> bytes | None:
        try:
            if name in self._members and self._tar is not None:
                stream = self._tar.extractfile(self._members[name])
                return stream.read() if stream else None
            file = (self._folder / name).resolve()
            return file.read_bytes() if file.is_relative_to(self._folder.resolve()) else None
        except (tarfile.TarError, OSError, ValueError):
            return None


def _lines(path: Path) -> Iterator[tuple[int, bytes | Exception]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield from ((number, line) for number, line in enumerate(stream) if line.strip())
    except (OSError, EOFError, zlib.error) as error:
        yield 0, error


def _draft(number: int, line: bytes, source: SourceConfig, images: _Images) -> Draft | Refused:
    key = f"row-{number}"
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise RowError("row not an object")
        ours = {name: row.get(source.columns.get(name, name)) for name in _COLUMNS}
        key = str(ours["id"]) if ours["id"] is not None else key
        licence = str(ours["licence"] or source.licence)
        return Draft(key, _segments(ours, images), licence)
    except RowError as error:
        return Refused(key, str(error), head(line))
    except (ValueError, RecursionError):
        return Refused(key, "row not json", head(line))


_COLUMNS = ("id", "question", "answer", "image", "segments", "text", "licence")


def _segments(row: dict[str, Any], images: _Images) -> Segments:
    if row["segments"] is not None:
        if not isinstance(row["segments"], list) or not row["segments"]:
            raise RowError("segments malformed")
        return tuple(_segment(part, images) for part in row["segments"])
    if row["question"] is not None and row["answer"] is not None:
        fixed: Segments = ((_text(row["question"]), "prompt"), (_text(row["answer"]), "target"))
        return ((_picture(row["image"], images), "prompt"), *fixed) if row["image"] is not None else fixed
    if row["text"] is not None:
        plain: Segments = ((_text(row["text"]), "auto"),)
        return ((_picture(row["image"], images), "auto"), *plain) if row["image"] is not None else plain
    raise RowError("columns missing")


def _segment(part: Any, images: _Images) -> tuple[str | Picture, Role]:
    if not isinstance(part, dict) or (part.get("text") is None) == (part.get("image") is None):
        raise RowError("segments malformed")
    role: Role = part.get("role", "auto")
    if role not in get_args(Role):
        raise RowError("segments malformed")
    return (_text(part["text"]) if part.get("text") is not None else _picture(part["image"], images)), role


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RowError("text not a string")
    return value


def _picture(name: Any, images: _Images) -> Picture:
    if not isinstance(name, str):
        raise RowError("image name not a string")
    return Picture(name, images.read(name))
