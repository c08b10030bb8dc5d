"""Retry: files with refused rows are ingested once more, and images that encode refused may be encoded again.

What comes out lies beside what was there; the next build takes it. Where nothing came out otherwise, nothing changes.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from workflows.corpus import ingest
from workflows.corpus.cluster import cluster
from workflows.corpus.config import CorpusConfig
from workflows.corpus.ingest import UnitReport
from workflows.corpus.ingested import attempt_of, part_of, stored
from workflows.corpus.parts import read_part
from workflows.corpus.quarantine import Wanted, is_filtered, parts
from workflows.corpus.units import list_units
from workflows.storage import delete, join


@dataclass(frozen=True, slots=True)
class RetryReport:
    """What became of refused rows that were tried again."""

    files: int
    """Files that were ingested again."""
    recovered: int
    """Rows that were refused and are not any more."""
    still: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows that are refused again."""
    new: int = 0
    """Rows that were not refused before and are now."""
    images: int = 0
    """Images that encode refused, which the next build tries again."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "files": self.files,
            "recovered": self.recovered,
            "still_refused": sum(self.still.values()),
            "still": dict(self.still),
            "newly_refused": self.new,
            "images": self.images,
            "seconds": round(self.seconds, 2),
        }


def retry(config: CorpusConfig, wanted: Wanted) -> RetryReport:
    """Try again what was refused of the sources of `config` and is wanted; of filtered rows only those that are named.

    Raises:
        OneFlowError: a source with no input, storage or a cluster that fails.
    """
    begin = time.monotonic()
    images = _forget(config, wanted) if wanted.stage != "ingest" else 0
    chosen = _chosen(config, wanted) if wanted.stage != "encode" else []
    before = [_refused(report) for report in chosen]
    if chosen:
        units = [report.unit for report in chosen]
        for unit in units:
            # What was fetched for its rows, and what could not be: it is fetched again.
            delete(join(config.root, "images", unit.source, f"{unit.part(config)}.parquet"))
        with cluster():
            ingest.ingest_units(config, units, {r.unit: _attempt(r) + 1 for r in chosen})
    after = ingest.reports(config, [report.unit for report in chosen])
    counts = [_compared(old, _refused(new)) for old, new in zip(before, after, strict=True)]
    for old, new in zip(chosen, after, strict=True):
        _drop_if_same(old, new)
    recovered, fresh = (sum(c[i].total() for c in counts) for i in (0, 2))
    still: Counter[str] = Counter()
    for count in counts:
        still.update(count[1])
    return RetryReport(len(chosen), recovered, dict(still), fresh, images, time.monotonic() - begin)


def _chosen(config: CorpusConfig, wanted: Wanted) -> list[UnitReport]:
    """The units that were ingested and have refused rows that are wanted."""
    there = stored(config)
    units = [u for u in list_units(config) if (u.source, part_of(config, u)) in there]
    return [
        report
        for report in ingest.reports(config, units)
        if wanted.source in (None, report.unit.source)
        and any(_is_wanted(r, wanted) for r in report.account.refused)
    ]


def _is_wanted(reason: str, wanted: Wanted) -> bool:
    return reason.startswith(wanted.reason) if wanted.reason is not None else not is_filtered(reason)


def _attempt(report: UnitReport) -> int:
    return attempt_of(report.url.rpartition("/")[2].removesuffix(".parquet"))[1]


def _refused(report: UnitReport) -> Counter[tuple[str, str]]:
    """(key, reason) of the refused rows."""
    if not report.account.refused:
        return Counter()
    rows = read_part(report.quarantine, ["key", "reason"])
    return Counter(zip(rows["key"].to_pylist(), rows["reason"].to_pylist(), strict=True))


def _compared(
    before: Counter[tuple[str, str]], after: Counter[tuple[str, str]]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Keys that are not refused any more, reasons of what is refused again, keys that are refused anew."""
    old, new = (_keys(rows) for rows in (before, after))
    again = Counter[str]()
    for (key, reason), count in after.items():
        again[reason] += min(count, old[key])
    return old - new, +again, new - old


def _keys(rows: Counter[tuple[str, str]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for (key, _), count in rows.items():
        found[key] += count
    return found


def _drop_if_same(old: UnitReport, new: UnitReport) -> None:
    """Take away an attempt that came out as the one before, so that there is nothing to build."""
    same = (old.documents_sha256, old.account) == (new.documents_sha256, new.account)
    if same and old.url != new.url:
        delete(new.url)
        delete(new.quarantine)


def _forget(config: CorpusConfig, wanted: Wanted) -> int:
    """Take back refusals of encode, part by part, where one is of a source of `config` and wanted; how many."""
    own = [source.name for source in config.sources]
    count = 0
    for part in parts(config.root, "encode"):
        rows = read_part(part.url)
        ours = wanted.of(rows.filter(pc.is_in(rows["source"], value_set=pa.array(own, pa.string()))))
        if ours.num_rows:
            delete(part.url)
            count += rows.num_rows
    return count
