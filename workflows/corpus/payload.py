"""What refused rows hold, read again from their sources, as files that can be looked at and mended."""

import re

from workflows.corpus import ingest
from workflows.corpus.config import CorpusConfig
from workflows.corpus.ingest import UnitReport
from workflows.corpus.ingested import part_of, stored
from workflows.corpus.parts import read_part
from workflows.corpus.quarantine import Wanted
from workflows.corpus.sources import Draft, Picture
from workflows.corpus.units import list_units, opened
from workflows.storage import join, put_atomic

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def export_payload(config: CorpusConfig, out: str, wanted: Wanted) -> int:
    """Write the segments of what ingest refused and is wanted: <out>/<source>/<file>/<key>.<number>.<suffix>; how many.

    Rows that are no draft at all (a file that is broken, JSON that is none) have no segments.
    """
    there = stored(config)
    units = [u for u in list_units(config) if (u.source, part_of(config, u)) in there]
    reports = [r for r in ingest.reports(config, units) if r.account.refused]
    return sum(_unit(config, report, out, wanted) for report in reports if wanted.stage in (None, "ingest"))


def _unit(config: CorpusConfig, report: UnitReport, out: str, wanted: Wanted) -> int:
    keys = set(wanted.of(read_part(report.quarantine))["key"].to_pylist())
    count = 0
    with opened(config, report.unit) as rows:
        for row in rows if keys else ():
            if isinstance(row, Draft) and row.key in keys:
                base = join(out, _safe(report.unit.source), _safe(report.unit.stem), _safe(row.key))
                count += sum(_put(f"{base}.{n}", content) for n, (content, _) in enumerate(row.segments))
    return count


def _put(base: str, content: str | Picture) -> bool:
    if isinstance(content, str):
        return put_atomic(f"{base}.txt", content.encode("utf-8", "surrogatepass"))
    if content.data is None:
        return False
    suffix = _safe(content.name.rpartition("/")[2].rpartition(".")[2]) or "bin"
    return put_atomic(f"{base}.{suffix[:8]}", content.data)


def _safe(name: str) -> str:
    """`name` as one step of a path; nothing that a tar or a row says leads out of the directory."""
    return _UNSAFE.sub("_", name).strip(".") or "_"
