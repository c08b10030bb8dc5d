"""Quarantine: what ingest and encode refused under a corpus root; to be listed, exported and tried again.

Of a file that was ingested several times (it was changed, or the config was) the last time counts: what was refused
before is of the past, whether or not anything was refused since.
"""

import base64
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workflows.corpus.filters import FILTERED
from workflows.corpus.gc import written
from workflows.corpus.ingested import QUARANTINE, attempt_of
from workflows.corpus.parts import list_parts, put_file, read_part
from workflows.errors import UsageError
from workflows.storage import explained, join, open_fs

Stage = Literal["ingest", "encode"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ROWS = pa.schema([("stage", pa.string()), *QUARANTINE, ("sha256", pa.string())])
"""What is listed and exported: of which stage, and of encode which image."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for; None: all. A reason stands for those that begin with it."""

    stage: Stage | None = None
    source: str | None = None
    reason: str | None = None

    def of(self, rows: pa.Table) -> pa.Table:
        """Those of `rows` that are wanted."""
        if self.source is not None:
            rows = rows.filter(pc.equal(rows["source"], self.source))
        if self.reason is not None:
            rows = rows.filter(pc.starts_with(rows["reason"], self.reason))
        return rows


@dataclass(frozen=True, slots=True)
class Part:
    """A stored part of refusals."""

    stage: Stage
    url: str


def parts(root: str, stage: Stage | None = None) -> list[Part]:
    """The parts that count, of one stage or of both."""
    return [Part(s, url) for s in STAGES if stage in (None, s) for url in _current(root, s)]


def tables(root: str, wanted: Wanted) -> Iterator[pa.Table]:
    """What was refused and is wanted, part by part, as `ROWS`."""
    for part in parts(root, wanted.stage):
        rows = wanted.of(_rows(part))
        if rows.num_rows:
            yield rows


def summary(root: str, wanted: Wanted) -> Counter[tuple[str, str, str]]:
    """(stage, source, reason) -> how many rows."""
    found: Counter[tuple[str, str, str]] = Counter()
    for rows in tables(root, wanted):
        groups = rows.group_by(["stage", "source", "reason"]).aggregate([([], "count_all")])
        for group in groups.to_pylist():
            found[group["stage"], group["source"], group["reason"]] += group["count_all"]
    return found


def first(root: str, wanted: Wanted, count: int) -> list[dict[str, Any]]:
    """The first `count` rows."""
    found: list[dict[str, Any]] = []
    for rows in tables(root, wanted) if count else ():
        found += rows.slice(0, count - len(found)).to_pylist()
        if len(found) >= count:
            break
    return found


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: the head in base64, and absent what it has not."""
    told = {name: value for name, value in row.items() if value is not None}
    return told | {"head": base64.b64encode(row["head"] or b"").decode()}


def export(root: str, out: str, wanted: Wanted) -> int:
    """Write what is wanted to the file `out`, .jsonl (heads in base64) or .parquet (heads as bytes); how many rows.

    Raises:
        UsageError: another suffix.
    """
    if not out.endswith((".jsonl", ".parquet")):
        raise UsageError(
            f"--out {out}", "what is written is told by its suffix", "name it .jsonl or .parquet"
        )
    with tempfile.TemporaryDirectory(prefix="oneflow-quarantine-") as folder:
        path = Path(folder, "rows")
        count = _to_parquet(path, root, wanted) if out.endswith(".parquet") else _to_jsonl(path, root, wanted)
        put_file(out, path)
    return count


def is_filtered(reason: str) -> bool:
    """Whether a row of this reason is well-formed and not wanted: trying again gives the same."""
    return reason.startswith(FILTERED)


def _to_parquet(path: Path, root: str, wanted: Wanted) -> int:
    with pq.ParquetWriter(path, ROWS, compression="zstd") as writer:
        return sum(writer.write_table(rows) or int(rows.num_rows) for rows in tables(root, wanted))


def _to_jsonl(path: Path, root: str, wanted: Wanted) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        for rows in tables(root, wanted):
            count += int(rows.num_rows)
            stream.writelines(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows.to_pylist())
    return count


def _rows(part: Part) -> pa.Table:
    table = read_part(part.url).replace_schema_metadata(None)
    stage = pa.repeat(pa.scalar(part.stage), table.num_rows)
    sha256 = table["sha256"] if "sha256" in table.column_names else pa.nulls(table.num_rows, pa.string())
    columns = [stage, *(table[name] for name in QUARANTINE.names), sha256]
    return pa.table(dict(zip(ROWS.names, columns, strict=True)), schema=ROWS)


def _current(root: str, stage: Stage) -> list[str]:
    """URLs of the parts of a stage that are not of the past."""
    found = list_parts(root, "quarantine", stage)
    if stage != "ingest":
        return list(found.values())
    names = {name: (*name.removeprefix("part-").rsplit("-", 2),) for name in found}
    last = {source: _last(join(root, "documents", source)) for source in {own[0] for own in names.values()}}
    return [
        found[name]
        for name, (source, file, rest) in names.items()
        if last[source].get(file, (0.0, 0, rest))[2] == rest
    ]


def _last(folder: str) -> dict[str, tuple[float, int, str]]:
    """Digest of a file's name -> when its last part was written, which attempt that is, and the rest of its name."""
    found: dict[str, tuple[float, int, str]] = {}
    filesystem, path = open_fs(folder)
    with explained(folder):
        listed = filesystem.ls(path, detail=True) if list_parts(folder) else []
    for info in listed:
        name = str(info["name"]).rpartition("/")[2]
        if name.startswith("part-") and name.endswith(".parquet"):
            file, _, rest = name.removeprefix("part-").removesuffix(".parquet").partition("-")
            own = (written(info), attempt_of(rest)[1], rest)
            found[file] = max(found.get(file, own), own)
    return found
