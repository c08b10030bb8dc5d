"""A captioned image out of the members of one sample: an image, and text or JSON beside it."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workflows.corpus.source_config import SourceConfig
from workflows.corpus.sources.protocol import Draft, Picture, Refused, head

IMAGE_SUFFIXES = frozenset({"png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm"})
_FIELD = re.compile(r"\{([A-Za-z0-9_.-]+)\}")


class MemberError(ValueError):
    """A member that is missing or unreadable; its text is the reason for the refusal."""


def is_image(name: str) -> bool:
    """Whether a file or member of this name is taken for an image."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def draft_of(key: str, members: Mapping[str, bytes], source: SourceConfig) -> Draft | Refused:
    """The pair (image, caption) of a sample, whose `members` are named by what follows the key."""
    images = [name for name in members if is_image(name)]
    if len(images) != 1:
        return Refused(key, "image missing" if not images else "several images", _any(members))
    try:
        caption, licence = fill(source.caption, members), fill(source.licence, members)
    except MemberError as error:
        return Refused(key, str(error), _any(members))
    picture = Picture(f"{key}.{images[0]}", members[images[0]])
    return Draft(key, ((picture, "auto"), (caption, "auto")), licence)


def fill(template: str, members: Mapping[str, bytes]) -> str:
    """`template` with each `{txt}` or `{json.a.b}` put in, ends stripped; lists are joined by commas.

    Raises:
        MemberError: a member or field that is not there, or no text.
    """
    return _FIELD.sub(lambda match: _value(match[1], members), template).strip()


def failures(table: Path) -> Iterator[Refused]:
    """Rows that a downloader (img2dataset) lists in its table as failed: they have no member anywhere."""
    import pyarrow.parquet as pq

    if not table.is_file():
        return
    try:
        rows = pq.read_table(table)
    except (OSError, ValueError) as error:
        yield Refused(table.name, "table unreadable", head(str(error)))
        return
    if not {"key", "status"} <= set(rows.column_names):
        return
    for row in rows.select(
        [c for c in ("key", "status", "url", "error_message") if c in rows.column_names]
    ).to_pylist():
        if row["status"] != "success":
            what = f"{row.get('url') or ''} {row.get('error_message') or ''}"
            yield Refused(str(row["key"]), f"upstream {row['status']}", head(what))


def _value(name: str, members: Mapping[str, bytes]) -> str:
    member, _, path = name.partition(".")
    if member not in members:
        raise MemberError("caption missing")
    try:
        text = members[member].decode("utf-8-sig")
        value: Any = json.loads(text) if path else text
    except UnicodeDecodeError:
        raise MemberError("text not utf-8") from None
    except ValueError:
        raise MemberError("json unreadable") from None
    for key in path.split(".") if path else ():
        value = value.get(key) if isinstance(value, dict) else None
    if value is None or isinstance(value, dict):
        raise MemberError("caption missing")
    return ", ".join(str(v) for v in value) if isinstance(value, list) else str(value)


def _any(members: Mapping[str, bytes]) -> bytes:
    return head(next(iter(members.values()), b""))
