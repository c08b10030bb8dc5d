"""Rows of JSON files, one at a time: lines, arrays, and lists that stand in an object."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, cast

import ijson

from workflows.corpus.sources.files import Files
from workflows.corpus.sources.packed import Broken, compressed, lines
from workflows.corpus.sources.protocol import Refused, head

ROW_BYTES = 64 << 20
"""Longest row that is read."""
PIECE = 1 << 16
LINES = compressed(".jsonl", ".ndjson")
DOCUMENTS = compressed(".json")
_LISTS = ("data", "rows", "annotations", "questions", "items", "samples")
"""Where an object that is the whole file has its rows: the first of these that is a list."""


def json_rows(files: Files, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """`row-N` and the value of each row of the unit's file, or of that called `name`; or a Refused in its place.

    Raises:
        ijson.JSONError, OSError, EOFError, ValueError, zlib.error: a file that is damaged, after the rows before.
    """
    stream = files.plain(name)
    kind = layout(stream, name or files.main)
    if kind == "lines":
        yield from _lines(stream)
        return
    prefixes = ["item"] if kind == "array" else [f"{name}.item" for name in _LISTS]
    number = -1
    for number, (_, row) in enumerate(items(stream, prefixes)):
        yield f"row-{number}", row
    if number < 0 and kind == "object":
        yield "row-0", Refused("", "no list of rows")


def layout(stream: BinaryIO, name: str) -> str:
    """lines, array or object: told by how the file begins, and by its name where that leaves it open."""
    start = cast(Any, stream).peek(PIECE).removeprefix(b"\xef\xbb\xbf").lstrip()
    first = start.split(b"\n", 1)[0].rstrip()
    if start.startswith(b"["):
        return "lines" if name.lower().endswith(LINES) and not re.match(rb"\[\s*(\{.*)?$", first) else "array"
    if name.lower().endswith(LINES) or not start.startswith(b"{"):
        return "lines"
    try:
        # A line that is a whole object, with another after it.
        json.loads(first)
        return "lines" if start[len(first) :].strip() or not _has_list(first) else "object"
    except (ValueError, RecursionError):
        return "lines" if _is_object(start[len(first) :].lstrip().split(b"\n", 1)[0]) else "object"


def items(stream: BinaryIO, prefixes: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Which prefix, and the value, of everything that ijson finds below the prefixes; in order for each of them.

    Raises:
        Broken: more than ROW_BYTES without a value.
        ijson.JSONError: damage, after what was before it.
    """
    found = [ijson.sendable_list() for _ in prefixes]
    parsers = [ijson.items_coro(f, p, use_float=True) for f, p in zip(found, prefixes, strict=True)]
    since, first, error = 0, True, None
    while error is None and (piece := stream.read(PIECE)):
        piece, first = piece.removeprefix(b"\xef\xbb\xbf") if first else piece, False
        since += len(piece)
        for parser in parsers:
            try:
                parser.send(piece)
            except ijson.JSONError as damage:
                error = damage
        for number, values in enumerate(found):
            since = 0 if values else since
            yield from ((number, value) for value in values)
            del values[:]
        if since > ROW_BYTES:
            raise Broken("row too large")
    if error is not None:
        raise error
    for parser in parsers:
        parser.close()


def _lines(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, line in lines(stream, ROW_BYTES):
        key = f"row-{number}"
        if line is None:
            yield key, Refused(key, "row too large")
            continue
        try:
            yield key, json.loads(line)
        except (ValueError, RecursionError):
            yield key, Refused(key, "row not json", head(line))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _has_list(start: bytes) -> bool:
    return re.search(rb'"(%s)"\s*:\s*\[' % "|".join(_LISTS).encode(), start) is not None
