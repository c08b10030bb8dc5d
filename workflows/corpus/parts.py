"""Parts: Parquet files under a corpus root, each written whole in one put, with facts about it in its footer."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.storage import exists, explained, join, open_fs, put_atomic, read_bytes

FACTS = b"oneflow"
READERS_AT_ONCE = 8
_written: dict[str, set[str]] = {}
"""Folder -> names of the parts that the tasks of this process wrote there."""


def write_part(url: str, table: pa.Table, facts: Mapping[str, Any]) -> None:
    """Write `table` to `url`; the same table and facts give the same bytes."""
    stream = io.BytesIO()
    held = table.replace_schema_metadata({FACTS: json.dumps(facts, sort_keys=True)})
    pq.write_table(held, stream, compression="zstd", compression_level=1)
    put_atomic(url, stream.getvalue())


def read_part(url: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The part at `url`, or some of its columns."""
    if columns is None:
        return pq.read_table(io.BytesIO(read_bytes(url)))
    filesystem, path = open_fs(url)
    with explained(url), filesystem.open(path, "rb") as stream:
        return pq.read_table(stream, columns=list(columns))


def read_facts(urls: Sequence[str]) -> list[dict[str, Any]]:
    """The facts in the footers of the parts, in their order."""
    with ThreadPoolExecutor(READERS_AT_ONCE) as pool:
        return list(pool.map(_facts, urls))


def list_parts(*where: str) -> dict[str, str]:
    """Name (without suffix) -> URL of the parts in the directory `where`; empty when there is none.

    A listing may be behind what was just written; what it does not show is asked for by name (`wrote`).

    Raises:
        OneFlowError: the bucket does not exist, so that nothing can ever be written there.
    """
    folder = join(*where)
    filesystem, path = open_fs(folder)
    with explained(folder):
        try:
            names = [entry.rpartition("/")[2] for entry in filesystem.ls(path, detail=False)]
        except FileNotFoundError as error:
            if "bucket does not exist" in str(error):
                raise
            names = []
    found = {n.removesuffix(".parquet") for n in names if _is_part(n)}
    found |= {n for n in _written.get(folder, set()) - found if exists(join(folder, f"{n}.parquet"))}
    return {n: join(folder, f"{n}.parquet") for n in sorted(found)}


def wrote(folder: str, names: Iterable[str]) -> None:
    """Tasks of this process have written the parts `names` into `folder`."""
    _written.setdefault(folder, set()).update(names)


def facts_of(table: pa.Table) -> dict[str, Any]:
    """The facts of a part that was read whole."""
    facts: dict[str, Any] = json.loads(table.schema.metadata[FACTS])
    return facts


def _facts(url: str) -> dict[str, Any]:
    filesystem, path = open_fs(url)
    with explained(url), filesystem.open(path, "rb") as stream:
        facts: dict[str, Any] = json.loads(pq.read_metadata(stream).metadata[FACTS])
        return facts


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")
