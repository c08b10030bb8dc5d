"""A captioned image out of the members of one sample: an image, and text or JSON beside it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from oneflow_core.document import Role
from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.answers import chosen
from workflows.corpus.sources.protocol import Draft, Picture, Refused, head
from workflows.corpus.sources.rows import RowError, field_of, fill, licence_of, meta_of, scalars, text_of
from workflows.urls import without_secrets

IMAGE_SUFFIXES = frozenset(
    {"png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff"}
    | {"ppm", "pgm", "pbm", "pnm", "avif", "jp2"}
)
CAPTIONS = ("txt", "caption", "text", "json.caption", "json.text", "json.TEXT")
"""Where the default caption `{txt}` is looked for: the first that is there."""
PROVENANCE = {"url": "json.url", "similarity": "json.similarity"}
MEMBER_BYTES = 16 << 20
"""Longest member that is read, images aside."""


def is_image(name: str) -> bool:
    """Whether a file or member of this name is taken for an image."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def draft_of(key: str, members: Mapping[str, bytes], source: SourceConfig) -> Draft | Refused:
    """The pair (image, caption) of a sample, whose `members` are named by what follows the key, in small letters."""
    images = [name for name in members if is_image(name)]
    if len(images) != 1:
        return Refused(key, "image missing" if not images else "several images", _any(members))
    fields = _Fields(members)
    picture = Picture(f"{key}.{images[0]}", members[images[0]])
    try:
        segments, licence = _segments(picture, fields, source), licence_of(source, fields.get)
    except RowError as error:
        return Refused(key, str(error), _any(members))
    meta = meta_of(source, fields.known, PROVENANCE)
    return Draft(key, segments, licence, meta, scalars(fields.json))


def failures(name: str, stream: BinaryIO) -> Iterator[Refused]:
    """Rows that a downloader (img2dataset) lists in its table as failed: they have no member anywhere."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(stream) as table:
            wanted = [c for c in ("key", "status", "url", "error_message") if c in table.schema_arrow.names]
            if not {"key", "status"} <= set(wanted):
                return
            for batch in table.iter_batches(columns=wanted, use_threads=False):
                yield from _failed(batch.to_pylist())
    except (OSError, ValueError) as error:
        yield Refused(name, "table unreadable", head(str(error)))


def _failed(rows: list[dict[str, Any]]) -> Iterator[Refused]:
    for row in rows:
        if row["status"] != "success":
            what = without_secrets(f"{row.get('url') or ''} {row.get('error_message') or ''}")
            yield Refused(str(row["key"]), f"upstream {row['status']}", head(what))


def _segments(
    picture: Picture, fields: "_Fields", source: SourceConfig
) -> tuple[tuple[str | Picture, Role], ...]:
    if not {"question", "answer"} <= set(source.columns):
        return (picture, "auto"), (_caption(fields, source), "auto")
    question, answer = fields.get(source.columns["question"]), fields.get(source.columns["answer"])
    if question is None or answer is None:
        raise RowError("columns missing")
    return (picture, "prompt"), (text_of(question), "prompt"), (chosen(answer)[0], "target")


def _caption(fields: "_Fields", source: SourceConfig) -> str:
    if source.caption != "{txt}":
        return fill(source.caption, fields.get)
    for name in CAPTIONS:
        if fields.has(name):
            return fill(f"{{{name}}}", fields.get)
    raise RowError("caption missing")


class _Fields:
    """Fields of a sample: `txt` is a member's text, `json.a.b` what its JSON holds."""

    def __init__(self, members: Mapping[str, bytes]) -> None:
        self._members = members
        self._parsed: dict[str, Any] = {}

    @property
    def json(self) -> dict[str, Any]:
        """What the member `json` holds, where that is an object."""
        try:
            found = self._parse("json")
        except RowError:
            return {}
        return found if isinstance(found, dict) else {}

    def has(self, name: str) -> bool:
        member, _, path = name.partition(".")
        return self.known(name) is not None if path else member in self._members

    def known(self, name: str) -> Any:
        """As `get`; None where the member cannot be read."""
        try:
            return self.get(name)
        except RowError:
            return None

    def get(self, name: str) -> Any:
        if name.lower() in self._members:
            return self._text(name.lower())
        member, _, path = name.partition(".")
        if path and member.lower() in self._members:
            return field_of(self._parse(member.lower()), path)
        return None

    def _parse(self, member: str) -> Any:
        if member not in self._parsed:
            text = self._text(member) if member in self._members else "null"
            try:
                self._parsed[member] = json.loads(text)
            except (ValueError, RecursionError):
                raise RowError("json unreadable") from None
        return self._parsed[member]

    def _text(self, member: str) -> str:
        try:
            return self._members[member].decode("utf-8-sig")
        except UnicodeDecodeError:
            raise RowError("text not utf-8") from None


def _any(members: Mapping[str, bytes]) -> bytes:
    return head(next(iter(members.values()), b""))
