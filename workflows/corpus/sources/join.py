"""Two lists that belong together by an id: one is indexed on disk, so that neither is held."""

import json
import sqlite3
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any


class Join:
    """Values by id, in a file that goes when this is closed."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="oneflow-join-")
        self._table = sqlite3.connect(Path(self._folder.name, "join"), isolation_level=None)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute("CREATE TABLE held (id TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self._table.execute("BEGIN")

    def __enter__(self) -> "Join":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._table.close()
        self._folder.cleanup()

    def put(self, key: Any, value: Any) -> None:
        """Hold `value`; the first of a key stays."""
        text = json.dumps(value, default=str)
        self._table.execute("INSERT OR IGNORE INTO held VALUES (?, ?)", (_id(key), text))

    def get(self, key: Any) -> Any:
        """What is held for `key`, None for nothing."""
        row = self._table.execute("SELECT value FROM held WHERE id = ?", (_id(key),)).fetchone()
        return None if row is None else json.loads(row[0])


def _id(key: Any) -> str:
    return str(key).encode("utf-8", "replace").decode()
