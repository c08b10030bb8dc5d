"""What rows of all formats have in common: fields by dotted names, templates, provenance, scalar columns."""

import datetime
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from workflows.corpus.source_config import SourceConfig
from workflows.urls import without_secrets

Lookup = Callable[[str], Any]
"""Name of a field, dots for what is nested -> its value, None where there is none."""
_FIELD = re.compile(r"\{([A-Za-z0-9_. -]+)(?::(0?\d+))?\}")
META_CHARS = 1024
"""Longest value of provenance that is kept."""
COLUMN_CHARS = 4096
"""Longest text that is kept as a column."""
COLUMNS = 256


class RowError(ValueError):
    """A row that is no document; its text is the reason for the refusal."""


def field_of(row: Any, name: str) -> Any:
    """The value of `name` in nested mappings and lists (`qa.0.answer`); a key with the dots in it comes first."""
    if isinstance(row, list):
        first, dot, rest = name.partition(".")
        if not first.isdecimal() or len(first) > 9 or int(first) >= len(row):
            return None
        return field_of(row[int(first)], rest) if dot else row[int(first)]
    if isinstance(row, Mapping):
        if name in row:
            return row[name]
        first, dot, rest = name.partition(".")
        return field_of(row[first], rest) if dot and first in row else None
    return None


def first_of(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of these fields that is not null; in any case of letters where none is spelt so."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    lower = {str(key).lower(): value for key, value in row.items() if value is not None}
    return next((lower[name.lower()] for name in names if name.lower() in lower), None)


def fill(template: str, lookup: Lookup, missing: str = "caption missing") -> str:
    """`template` with each `{field}` put in, ends stripped; lists are joined by commas, `{id:012}` pads.

    Raises:
        RowError: `missing`, where a field is not there.
    """

    def value(match: re.Match[str]) -> str:
        found = lookup(match[1])
        if found is None or isinstance(found, Mapping | bytes):
            raise RowError(missing)
        text = ", ".join(str(v) for v in found) if isinstance(found, list) else str(found)
        width = match[2] or ""
        return text.rjust(min(int(width), 64), "0" if width.startswith("0") else " ") if width else text

    return _FIELD.sub(value, template).strip()


def licence_of(source: SourceConfig, lookup: Lookup) -> str:
    """The row's own licence, by the column `licence` or that which the config maps; else the source's, filled."""
    own = lookup(source.columns.get("licence", "licence"))
    if isinstance(own, str | int) and str(own).strip():
        return without_secrets(str(own).strip())
    return without_secrets(fill(source.licence, lookup, "licence missing"))


def meta_of(source: SourceConfig, lookup: Lookup, defaults: Mapping[str, str]) -> dict[str, str]:
    """Provenance: our name -> the text of a field, for the format's `defaults` and those that the config adds."""
    found = {ours: lookup(theirs) for ours, theirs in {**defaults, **source.meta}.items()}
    return {ours: said(value) for ours, value in found.items() if value not in (None, "", [])}


def said(value: Any) -> str:
    """A value as text of provenance, without secrets, cut where it is long."""
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = value.encode("utf-8", "replace").decode()
    return without_secrets(text)[:META_CHARS]


def scalars(row: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, texts and truths of a row by its own names, dots for what is nested; dates as ISO text."""
    found: dict[str, Any] = {}
    stack: list[tuple[str, Any, int]] = [(str(key), value, 0) for key, value in list(row.items())[::-1]]
    while stack and len(found) < COLUMNS:
        name, value, depth = stack.pop()
        if isinstance(value, Mapping) and depth < 3:
            stack += [(f"{name}.{key}", inner, depth + 1) for key, inner in list(value.items())[::-1]]
        elif isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            found[name] = value
        elif isinstance(value, datetime.date | datetime.time):
            found[name] = value.isoformat()
        elif isinstance(value, str) and len(value) <= COLUMN_CHARS:
            found[name] = without_secrets(value)
    return found


def text_of(value: Any) -> str:
    """`value`, which must be text.

    Raises:
        RowError: it is something else.
    """
    if not isinstance(value, str):
        raise RowError("text not a string")
    return value
