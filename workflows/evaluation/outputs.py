"""Outputs kept as they come, so that an evaluation that was killed asks only for what is missing.

A folder holds files of lines, one output a line. Each process writes files of its own: locally it appends to one, and
in a store that cannot append every few seconds' lines are an object. A line that is torn is as good as not there.
"""

from __future__ import annotations

import base64
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from workflows import storage
from workflows.evaluation.item import Output, Part

FLUSH_S = 2.0
"""The most that a crash of the machine, or of a driver whose folder is in a store, may cost."""


class OutputStore:
    """The outputs below `url`, a directory or an fsspec URL; `kept` has the last one of each key."""

    def __init__(self, url: str) -> None:
        filesystem, path = storage.open_fs(url)
        self._url, self._name, self._objects = url, uuid.uuid4().hex, 0
        self._lines: list[bytes] = []
        self._flushed = time.monotonic()
        self.kept: dict[str, Output] = dict(_read(url))
        self._file: BinaryIO | None = None
        if isinstance(filesystem, LocalFileSystem):
            Path(path).mkdir(parents=True, exist_ok=True)
            self._file = (Path(path) / f"{self._name}.jsonl").open("xb")

    def add(self, key: str, output: Output) -> None:
        """Keeps `output`, for good after `FLUSH_S` at the latest; locally a killed process loses nothing."""
        line = json.dumps({"key": key, **to_json(output)}, ensure_ascii=False).encode() + b"\n"
        self.kept[key] = output
        if self._file:
            self._file.write(line)
            self._file.flush()
        else:
            self._lines.append(line)
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """What was added is in the store."""
        self._flushed = time.monotonic()
        if self._file:
            os.fsync(self._file.fileno())
        elif self._lines:
            storage.put_atomic(
                storage.join(self._url, f"{self._name}-{self._objects:05}.jsonl"), b"".join(self._lines)
            )
            self._lines, self._objects = [], self._objects + 1

    def close(self) -> None:
        """Ends writing; all of it stays for the next process."""
        self.flush()
        if self._file:
            self._file.close()

    def discard(self) -> None:
        """Removes the folder; what it was kept for is done."""
        storage.delete(self._url, recursive=True)


def to_json(output: Output) -> dict[str, Any]:
    """An output as plain JSON; `from_json` reads it."""
    return {
        "parts": [
            {"text": part} if isinstance(part, str) else {"image": base64.b64encode(part).decode("ascii")}
            for part in output.parts
        ],
        "error": output.error,
        "seconds": output.seconds,
        "attempts": output.attempts,
        "model": dict(output.model),
    }


def from_json(tree: Mapping[str, Any]) -> Output:
    """The output that `to_json` told of; KeyError, TypeError or ValueError where it is none."""
    parts: tuple[Part, ...] = tuple(
        str(part["text"]) if "text" in part else base64.b64decode(part["image"], validate=True)
        for part in tree["parts"]
    )
    return Output(
        parts, str(tree["error"]), float(tree["seconds"]), int(tree["attempts"]), dict(tree["model"])
    )


def _read(url: str) -> Iterator[tuple[str, Output]]:
    """Failures first: an item that failed in one process may have come through in another."""
    found = []
    for file in storage.list_urls(storage.join(url, "*.jsonl")):
        for line in storage.read_bytes(file).splitlines():
            try:
                tree = json.loads(line)
                found.append((str(tree["key"]), from_json(tree)))
            except (ValueError, KeyError, TypeError):
                continue
    yield from (pair for pair in found if pair[1].error)
    yield from (pair for pair in found if not pair[1].error)
